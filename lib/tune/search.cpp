// SPDX-License-Identifier: Apache-2.0
#include "tune/search.h"

#include <algorithm>
#include <chrono>
#include <cmath>

#include "base/error.h"
#include "tune/config_fields.h"
#include "tune/prune.h"

namespace sapwood::tune {
namespace {

double middle(std::vector<double>& values) {
    const auto half = values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2);
    std::nth_element(values.begin(), half, values.end());
    if (values.size() % 2 == 1) return *half;
    return (*half + *std::max_element(values.begin(), half)) / 2;
}

/// Of an earlier run: a result that measuring again would only repeat. "unmeasured" and "pruned:rank" are none.
const TuneCandidate* result_of(std::span<const TuneCandidate> known, const DecodeConfig& config) {
    for (const TuneCandidate& old : known) {
        if (!same_config(old.config, config)) continue;
        const bool lasting = old.measured() || old.status == "wrong" || old.status == "crash" || old.status == "build-failed" ||
                             old.status == "pruned:spill" || old.status == "pruned:occupancy";
        return lasting ? &old : nullptr;
    }
    return nullptr;
}

class Search {
public:
    Search(CandidateSet set, Measurer& measurer, const DeviceFacts& device, const TuneOptions& options)
        : tolerated_spill_(set.tolerated_spill),
          all_(std::move(set.all)),
          samples_(all_.size()),
          measurer_(measurer),
          device_(device),
          options_(options) {}

    TuneReport run(std::span<const TuneCandidate> known) {
        const bool anything_new = take_over(known);
        try {
            if (anything_new) measure();
        } catch (const DeviceLost& lost) {
            all_[at_work_].status = "crash";
            all_[at_work_].reason = lost.what();
            report_.failure = lost.what();
            report_.complete = false;
        }
        take_out_drift();
        for (std::size_t i = 0; i < all_.size(); ++i) {
            if (samples_[i].empty()) {
                // A survivor without a sample: time was up, or the device failed before its turn.
                if (all_[i].status == "ok" && all_[i].samples == 0) all_[i].status = "unmeasured";
                continue;
            }
            const Statistics statistics = statistics_of(samples_[i]);
            all_[i].median_us = statistics.median;
            all_[i].mad_us = statistics.mad;
            all_[i].samples = static_cast<int>(samples_[i].size());
        }
        report_.default_config = all_.front().config;
        const int best = choose_best(all_, options_.policy);
        report_.best = best < 0 ? all_.front().config : all_[static_cast<std::size_t>(best)].config;
        report_.candidates = std::move(all_);
        return std::move(report_);
    }

private:
    using Clock = std::chrono::steady_clock;

    /// Copies what is known; false if nothing is left to measure.
    bool take_over(std::span<const TuneCandidate> known) {
        frozen_.assign(all_.size(), false);
        std::size_t fresh = 0;
        for (std::size_t i = 0; i < all_.size(); ++i) {
            if (all_[i].status != "ok") continue;
            const TuneCandidate* old = result_of(known, all_[i].config);
            if (old == nullptr) {
                ++fresh;
                continue;
            }
            frozen_[i] = true;
            TuneCandidate& mine = all_[i];
            mine.status = old->status, mine.reason = old->reason;
            mine.registers = old->registers, mine.spill_bytes = old->spill_bytes, mine.compiled = true;
            mine.median_us = old->median_us, mine.mad_us = old->mad_us, mine.samples = old->samples;
        }
        if (all_.front().status != "ok")
            raise(ErrorCode::kUnsupportedDevice, "the default configuration " + config_text(all_.front().config) +
                                                     " is recorded as " + all_.front().status + " (" + all_.front().reason +
                                                     "); nothing can be tuned against it");
        if (fresh == 0) return false;
        // New ones must be timed beside those that they are compared with.
        const int best = choose_best(all_, options_.policy);
        for (const int again : {0, best})
            if (again >= 0 && all_[static_cast<std::size_t>(again)].status == "ok")
                frozen_[static_cast<std::size_t>(again)] = false;
        return true;
    }

    std::vector<std::size_t> running() const {
        std::vector<std::size_t> indices;
        for (std::size_t i = 0; i < all_.size(); ++i)
            if (all_[i].status == "ok" && !frozen_[i]) indices.push_back(i);
        return indices;
    }

    void tell(std::size_t i, int round) {
        at_work_ = i;
        if (options_.progress) options_.progress(all_[i], round);
    }
    bool time_is_up() const {
        return options_.seconds > 0 && std::chrono::duration<double>(Clock::now() - start_).count() > options_.seconds;
    }

    void build_and_check() {
        for (const std::size_t i : running()) {
            if (i > 0 && time_is_up()) return;
            tell(i, 0);
            const Measurer::Built built = measurer_.build(all_[i].config);
            if (!built.failure.empty()) {
                all_[i].status = "build-failed";
                all_[i].reason = built.failure;
            } else {
                apply_compiled(device_, built.registers, built.spill_bytes, all_[i]);
            }
            if (i == 0 && all_[0].status != "ok")
                raise(ErrorCode::kUnsupportedDevice, "the default configuration " + config_text(all_[0].config) +
                                                         " does not run: " + all_[0].status + ", " + all_[0].reason +
                                                         "; nothing can be tuned against it");
        }
        TuneCandidate& first = all_.front();
        const bool default_spills = first.compiled && first.spill_bytes > 0;
        drop_spilling(all_, tolerated_spill_);
        if (default_spills) first.status = "ok", first.reason.clear();  // slow or not, it is what everything is compared with
        for (const std::size_t i : running()) {
            if (!all_[i].compiled) continue;
            tell(i, 0);
            std::string difference;
            try {
                difference = measurer_.check(all_[i].config);
            } catch (const Error& error) {
                if (i == 0) throw;
                all_[i].status = "crash";
                all_[i].reason = error.what();
                continue;
            }
            if (difference.empty()) continue;
            if (i == 0)
                raise(ErrorCode::kInternal, "the default configuration " + config_text(all_[0].config) + " gives " + difference +
                                                "; its result is what candidates are compared with");
            all_[i].status = "wrong";
            all_[i].reason = std::move(difference);
            measurer_.release(all_[i].config);
        }
    }

    /// An error that leaves the device alive ends one candidate only.
    void take(std::size_t i, int round) {
        tell(i, round);
        try {
            samples_[i].push_back(measurer_.sample(all_[i].config));
        } catch (const Error& error) {
            if (i == 0) throw;
            all_[i].status = "crash";
            all_[i].reason = error.what();
        }
    }

    /// Candidates take turns, so that what slows the clocks slows a whole turn: each turn is divided by how slow it was for those
    /// that took part. Else a drift would count as noise of every candidate, and hide differences that are there.
    void take_out_drift() {
        std::vector<double> medians(samples_.size());
        std::size_t turns = 0;
        for (std::size_t i = 0; i < samples_.size(); ++i) {
            medians[i] = median(i);
            turns = std::max(turns, samples_[i].size());
        }
        std::vector<double> slow(turns, 1);
        for (std::size_t turn = 0; turn < turns; ++turn) {
            std::vector<double> ratios;
            for (std::size_t i = 0; i < samples_.size(); ++i)
                if (samples_[i].size() > turn) ratios.push_back(samples_[i][turn] / medians[i]);
            if (ratios.size() > 2) slow[turn] = middle(ratios);
        }
        for (auto& samples : samples_)
            for (std::size_t turn = 0; turn < samples.size(); ++turn) samples[turn] /= slow[turn];
    }

    double median(std::size_t i) const { return statistics_of(samples_[i]).median; }

    void measure() {
        build_and_check();
        std::vector<std::size_t> left = running();
        std::erase_if(left, [&](std::size_t i) { return !all_[i].compiled; });
        const TunePolicy& policy = options_.policy;
        for (int round = 0; round < 3 && !left.empty(); ++round) {
            for (int n = static_cast<int>(round > 0 ? policy.rounds[round - 1] : 0); n < policy.rounds[round]; ++n) {
                for (const std::size_t i : left) {
                    if (time_is_up() && n > 0) {  // everyone alive has a sample by then
                        report_.complete = false;
                        return;
                    }
                    take(i, round + 1);
                }
                std::erase_if(left, [&](std::size_t i) { return all_[i].status != "ok"; });
                if (round == 0 && n == 0) narrow(left, policy.early_stop, left.size());
            }
            if (round == 2) break;
            narrow(left, policy.keep[round], round == 1 ? static_cast<std::size_t>(policy.finalists) : left.size());
        }
    }

    /// Keeps those within `factor` of the best, the fastest `most` of them, and the default.
    void narrow(std::vector<std::size_t>& left, double factor, std::size_t most) {
        std::vector<std::size_t> by_time = left;
        std::stable_sort(by_time.begin(), by_time.end(), [&](std::size_t a, std::size_t b) { return median(a) < median(b); });
        const double limit = median(by_time.front()) * factor;
        std::erase_if(left, [&](std::size_t i) {
            const auto place = static_cast<std::size_t>(std::find(by_time.begin(), by_time.end(), i) - by_time.begin());
            const bool out = i != 0 && (median(i) > limit || place >= most);
            if (out) measurer_.release(all_[i].config);
            return out;
        });
    }

    const int tolerated_spill_;
    std::vector<TuneCandidate> all_;
    std::vector<std::vector<double>> samples_;
    std::vector<bool> frozen_;
    Measurer& measurer_;
    const DeviceFacts& device_;
    const TuneOptions& options_;
    Clock::time_point start_ = Clock::now();
    std::size_t at_work_ = 0;
    TuneReport report_;
};

}  // namespace

Statistics statistics_of(std::vector<double> samples) {
    if (samples.empty()) return {};
    Statistics result;
    result.median = middle(samples);
    for (double& sample : samples) sample = std::abs(sample - result.median);
    result.mad = middle(samples);
    return result;
}

int choose_best(std::span<const TuneCandidate> candidates, const TunePolicy& policy) {
    int most = 0;
    for (const TuneCandidate& c : candidates)
        if (c.measured()) most = std::max(most, c.samples);
    const TuneCandidate* fastest = nullptr;
    for (const TuneCandidate& c : candidates)
        if (c.measured() && c.samples == most && (fastest == nullptr || c.median_us < fastest->median_us)) fastest = &c;
    if (fastest == nullptr) return -1;
    for (std::size_t i = 0; i < candidates.size(); ++i) {
        const TuneCandidate& c = candidates[i];
        if (!c.measured() || c.samples != most) continue;
        const double noise = policy.noise_factor * std::max(c.mad_us, fastest->mad_us);
        const double needed = std::max(policy.least_gain * c.median_us, noise);
        if (c.median_us - fastest->median_us <= needed) return static_cast<int>(i);
    }
    return static_cast<int>(fastest - candidates.data());
}

bool needs_measuring(const CandidateSet& set, std::span<const TuneCandidate> known) {
    return std::any_of(set.all.begin(), set.all.end(), [&](const TuneCandidate& candidate) {
        return candidate.status == "ok" && result_of(known, candidate.config) == nullptr;
    });
}

TuneReport search(CandidateSet set, Measurer& measurer, const DeviceFacts& device, const TuneOptions& options,
                  std::span<const TuneCandidate> known) {
    const std::string list = set.list.to_string();
    const double floor_us = set.floor_us;
    TuneReport report = Search(std::move(set), measurer, device, options).run(known);
    report.list = list;
    report.floor_us = floor_us;
    report.model_choice = report.candidates[least_cost(report.candidates)].config;
    return report;
}

}  // namespace sapwood::tune

namespace sapwood {

const TuneCandidate* TuneReport::find(const DecodeConfig& config) const {
    for (const TuneCandidate& candidate : candidates)
        if (tune::same_config(candidate.config, config)) return &candidate;
    for (const TuneCandidate& candidate : candidates)
        for (const DecodeConfig& same : candidate.same)
            if (tune::same_config(same, config)) return &candidate;
    return nullptr;
}

}  // namespace sapwood
