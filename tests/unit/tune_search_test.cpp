// SPDX-License-Identifier: Apache-2.0
// The search on a simulated device: noise, drift, wrong and crashing candidates.
#include <doctest/doctest.h>

#include <cmath>
#include <map>

#include "plan/tiles.h"
#include "support/offline_limits.h"
#include "support/random_forest.h"
#include "support/rng.h"
#include "tune/config_fields.h"
#include "tune/search.h"

using namespace sapwood;

namespace {

/// True times, and what a real device adds: noise of each sample, a slow drift that hits all alike, an offset of the whole process
/// (where its memory lies).
class Noisy : public tune::Measurer {
public:
    explicit Noisy(std::uint64_t seed) : noise_(seed) {}
    std::map<std::string, double> times;
    std::string wrong, loses_device, fails;
    int built = 0, sampled = 0;

    Built build(const DecodeConfig& config) override {
        ++built;
        if (tune::config_text(config) == fails) return {.failure = "ptxas said no"};
        return {.registers = 128, .spill_bytes = 0, .failure = {}};
    }
    std::string check(const DecodeConfig& config) override {
        if (tune::config_text(config) == loses_device) throw tune::DeviceLost("illegal address");
        return tune::config_text(config) == wrong ? "max_abs=0.31" : "";
    }
    double sample(const DecodeConfig& config) override {
        ++sampled;
        const std::string name = tune::config_text(config);
        if (!offset_.contains(name)) offset_[name] = 1 + 0.0005 * normal();
        drift_ += 0.0002;
        return times.at(name) * offset_[name] * (1 + drift_) * (1 + 0.004 * std::abs(normal()));
    }

private:
    double normal() { return support::value_of_step(support::value_step(noise_())); }
    struct Source {
        std::uint64_t seed, next = 0;
        explicit Source(std::uint64_t s) : seed(s) {}
        std::uint64_t operator()() { return support::Rng(seed, support::Stream::q)(next++); }
    } noise_;
    std::map<std::string, double> offset_;
    double drift_ = 0;
};

tune::DeviceFacts h100() { return {.limits = support::offline_limits("sm_90a"), .name = "H100 SXM"}; }

/// Candidates by hand: the default, then others that differ in stages and split.
tune::CandidateSet candidates(int count) {
    tune::CandidateSet set;
    set.list = tune::list_for(90);
    for (int i = 0; i < count; ++i)
        set.all.push_back(
            {.config =
                 {.mainloop = Mainloop::mma, .warps = 8, .producers = 4, .block_kv = 64, .stages = 6, .blocks = 1, .split = i},
             .shared_bytes = 100'000,
             .threads = 384,
             .cost_us = 10});
    return set;
}

std::string name_of(const tune::CandidateSet& set, std::size_t i) { return tune::config_text(set.all[i].config); }

}  // namespace

TEST_CASE("tune search: two runs on a noisy device decide alike, and near the best") {
    int alike = 0, near = 0;
    constexpr int kBuckets = 300;
    for (std::uint64_t bucket = 0; bucket < kBuckets; ++bucket) {
        support::Dice dice(bucket);
        const tune::CandidateSet set = candidates(24);
        std::map<std::string, double> times;
        double best = 1e9;
        for (std::size_t i = 0; i < set.all.size(); ++i) {
            const double us = 20.0 * (1 + 0.001 * dice.between(0, 400));
            times[name_of(set, i)] = us;
            best = std::min(best, us);
        }
        std::string chosen[2];
        for (int run = 0; run < 2; ++run) {
            Noisy device(bucket * 2 + static_cast<std::uint64_t>(run) + 1000);
            device.times = times;
            chosen[run] = tune::config_text(tune::search(set, device, h100(), {}).best);
        }
        alike += chosen[0] == chosen[1];
        near += times[chosen[0]] <= 1.02 * best;
    }
    CHECK(alike >= 0.95 * kBuckets);
    CHECK(near == kBuckets);
}

TEST_CASE("tune search: ties go to the default, gains beyond noise do not") {
    const tune::CandidateSet set = candidates(3);
    Noisy device(7);
    device.times = {{name_of(set, 0), 20.0}, {name_of(set, 1), 19.95}, {name_of(set, 2), 24.0}};
    CHECK(tune::same_config(tune::search(set, device, h100(), {}).best, set.all[0].config));
    device.times[name_of(set, 2)] = 18.0;
    CHECK(tune::same_config(tune::search(set, device, h100(), {}).best, set.all[2].config));
}

TEST_CASE("tune search: a wrong, a failing and a crashing candidate are recorded and never win") {
    const tune::CandidateSet set = candidates(5);
    Noisy device(3);
    for (std::size_t i = 0; i < 5; ++i) device.times[name_of(set, i)] = 20.0 - 3.0 * static_cast<double>(i);
    device.wrong = name_of(set, 4);
    device.fails = name_of(set, 3);
    const TuneReport report = tune::search(set, device, h100(), {});
    CHECK(report.candidates[4].status == "wrong");
    CHECK(report.candidates[4].reason == "max_abs=0.31");
    CHECK(report.candidates[3].status == "build-failed");
    CHECK(tune::same_config(report.best, set.all[2].config));
    CHECK(report.complete);

    device.loses_device = name_of(set, 2);
    const TuneReport lost = tune::search(set, device, h100(), {});
    CHECK(lost.candidates[2].status == "crash");
    CHECK(lost.failure == "illegal address");
    CHECK(!lost.complete);
    CHECK(tune::same_config(lost.best, set.all[0].config));
}

TEST_CASE("tune search: what is known is not measured again, and one more candidate costs one measurement") {
    const tune::CandidateSet all = candidates(12);
    Noisy device(5);
    for (std::size_t i = 0; i < 12; ++i) device.times[name_of(all, i)] = 20.0 + static_cast<double>(i % 7);
    tune::CandidateSet fewer = all;
    fewer.all.pop_back();
    const TuneReport first = tune::search(fewer, device, h100(), {});
    device.built = device.sampled = 0;
    CHECK(!tune::needs_measuring(fewer, first.candidates));
    CHECK(tune::same_config(tune::search(fewer, device, h100(), {}, first.candidates).best, first.best));
    CHECK(device.sampled == 0);
    CHECK(tune::needs_measuring(all, first.candidates));
    device.times[name_of(all, 11)] = 10.0;
    const TuneReport second = tune::search(all, device, h100(), {}, first.candidates);
    CHECK(device.built <= 3);  // the new one, the default, the recorded best
    CHECK(tune::same_config(second.best, all.all[11].config));
}

TEST_CASE("tune search: spilling candidates are dropped unless all spill; time that is up leaves a decision") {
    struct Spilling : Noisy {
        using Noisy::Noisy;
        int clean = -1;
        Built build(const DecodeConfig& config) override {
            return {.registers = 128, .spill_bytes = config.split == clean ? 0 : 64, .failure = {}};
        }
    } device(9);
    const tune::CandidateSet set = candidates(3);
    for (std::size_t i = 0; i < 3; ++i) device.times[name_of(set, i)] = 20.0 - static_cast<double>(i);
    CHECK(tune::same_config(tune::search(set, device, h100(), {}).best, set.all[2].config));
    device.clean = 1;
    const TuneReport report = tune::search(set, device, h100(), {});
    CHECK(report.candidates[2].status == "pruned:spill");
    CHECK(report.candidates[0].measured());  // the default stays, spilling or not: it is what the others are compared with
    CHECK(tune::same_config(report.best, set.all[1].config));

    TuneOptions hurried;
    hurried.seconds = 1e-9;
    const TuneReport cut = tune::search(set, device, h100(), hurried);
    CHECK(!cut.complete);
    CHECK(tune::same_config(cut.best, set.all[0].config));
}
