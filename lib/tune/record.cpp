// SPDX-License-Identifier: Apache-2.0
#include "tune/record.h"

#include <algorithm>
#include <cmath>

#include "base/digest.h"
#include "tune/config_fields.h"
#include "tune/configs.h"
#include "tune/epoch.h"
#include "tune/search.h"

namespace sapwood::tune {
namespace {

constexpr std::int64_t kGib = std::int64_t{1} << 30;

/// Worth keeping: what holds of the configuration on this device, not of one run's choice of candidates. What the resource model
/// says of a kernel is said once, not for each of its plans.
bool lasting(const TuneCandidate& c) {
    if (c.compiled || c.samples > 0) return c.status != "unmeasured";
    return c.status == "crash" || c.status == "build-failed" ||
           ((c.status == "pruned:smem" || c.status == "pruned:registers" || c.status == "pruned:occupancy") &&
            plan_text(c.config).empty());
}

const Timing* find_timing(const Measured& measured, const DecodeConfig& config) {
    for (const Timing& timing : measured.timings)
        if (same_config(timing.candidate.config, config)) return &timing;
    return nullptr;
}

/// Of the configuration, or of one that plans the same work for the same kernel.
const Timing* find_equivalent(const Measured& measured, const DecodeConfig& config) {
    if (const Timing* timing = find_timing(measured, config)) return timing;
    for (const Timing& timing : measured.timings)
        for (const DecodeConfig& same : timing.candidate.same)
            if (same_config(same, config)) return &timing;
    return nullptr;
}

void sort_timings(Measured& measured, const Bucket& bucket, int sm) {
    const PreferenceOrder before(sm, static_cast<Family>(bucket.family));
    std::sort(measured.timings.begin(), measured.timings.end(), [&](const Timing& a, const Timing& b) {
        const bool default_a = same_config(a.candidate.config, measured.default_config);
        const bool default_b = same_config(b.candidate.config, measured.default_config);
        return default_a != default_b ? default_a : before(a.candidate.config, b.candidate.config);
    });
}

/// One candidate a configuration over all problems of the record, in tie order: the time is the geometric mean of what it takes
/// over the best of each problem. Configurations that are missing or bad in one of them are left out.
std::vector<TuneCandidate> aggregate(const Record& record, int sm) {
    std::vector<TuneCandidate> together;
    if (record.measured.empty()) return together;
    std::vector<double> least;
    for (const Measured& each : record.measured) {
        double best = 0;
        for (const Timing& t : each.timings)
            if (t.candidate.measured() && (best == 0 || t.candidate.median_us < best)) best = t.candidate.median_us;
        least.push_back(best);
    }
    Measured sorted = record.measured.front();
    if (record.measured.size() > 1) {
        const std::size_t own = sorted.timings.size();
        for (std::size_t i = 0; i < own; ++i)
            for (const DecodeConfig& same : std::vector(sorted.timings[i].candidate.same))
                if (find_timing(sorted, same) == nullptr) sorted.timings.push_back({.candidate = {.config = same}});
    }
    sort_timings(sorted, record.bucket, sm);
    for (const Timing& first : sorted.timings) {
        TuneCandidate sum;
        sum.config = first.candidate.config;
        double log_ratio = 0, noise = 0;
        int samples = 0;
        bool everywhere = true;
        for (std::size_t i = 0; i < record.measured.size() && everywhere; ++i) {
            const Timing* timing = find_equivalent(record.measured[i], sum.config);
            everywhere = timing != nullptr && timing->candidate.measured() && least[i] > 0;
            if (!everywhere) break;
            const TuneCandidate& c = timing->candidate;
            log_ratio += std::log(c.median_us / least[i]);
            noise += c.mad_us / c.median_us;
            samples = i == 0 ? c.samples : std::min(samples, c.samples);
        }
        if (!everywhere) continue;
        const double count = static_cast<double>(record.measured.size());
        sum.median_us = std::exp(log_ratio / count);
        sum.mad_us = noise / count * sum.median_us;
        sum.samples = samples;
        together.push_back(std::move(sum));
    }
    // Dropped early in one problem and a finalist in another: few samples, but a gap that is larger than their noise.
    if (record.measured.size() > 1)
        for (TuneCandidate& c : together) c.samples = 1;
    return together;
}

bool later(const Timing& a, const Timing& b) { return a.date != b.date ? a.date > b.date : timing_text(a) > timing_text(b); }

std::string hex_of(std::initializer_list<std::string> fields, std::size_t digits) {
    Hasher hasher;
    std::uint16_t tag = 0;
    for (const std::string& field : fields) hasher.field(++tag, field);
    return to_hex(hasher.finish()).substr(0, digits);
}

}  // namespace

std::string Environment::id() const {
    return hex_of({std::to_string(sm), std::to_string(sms), gpu, std::to_string(memory_gib), code, std::to_string(epoch), policy},
                  16);
}

Environment environment_of(const DeviceFacts& device, const TunePolicy& policy) {
    return {.sm = device.limits.sm,
            .sms = device.limits.sms,
            .gpu = device.name,
            .memory_gib = static_cast<int>((device.memory_bytes + 4 * kGib) / (8 * kGib) * 8),
            .code = code_digest(),
            .epoch = tuning_epoch().number,
            .policy = policy.name};
}

std::string Provenance::id() const {
    return hex_of({gpu, uuid, driver, nvrtc, throttle, tool, code, date, std::to_string(sm), std::to_string(sms),
                   std::to_string(sm_mhz), std::to_string(memory_mhz), std::to_string(power_limit_w), std::to_string(cuda_driver)},
                  12);
}

const Measured* Record::find(const Sizes& sizes) const {
    for (const Measured& each : measured)
        if (each.sizes == sizes) return &each;
    return nullptr;
}

DecodeConfig Record::best(int sm, const TunePolicy& policy_used) const {
    const std::vector<TuneCandidate> together = aggregate(*this, sm);
    const int index = choose_best(together, policy_used);
    if (index >= 0) return together[static_cast<std::size_t>(index)].config;
    return measured.empty() ? DecodeConfig{} : measured.front().default_config;
}

std::vector<std::pair<DecodeConfig, double>> Record::ranked(int sm) const {
    std::vector<TuneCandidate> together = aggregate(*this, sm);
    double of_default = 0;
    if (!together.empty() && same_config(together.front().config, measured.front().default_config))
        of_default = together.front().median_us;
    std::stable_sort(together.begin(), together.end(), [](const auto& a, const auto& b) { return a.median_us < b.median_us; });
    std::vector<std::pair<DecodeConfig, double>> result;
    for (const TuneCandidate& c : together) result.emplace_back(c.config, of_default > 0 ? c.median_us / of_default : c.median_us);
    return result;
}

void add(Record& record, const std::string& name, const Sizes& sizes, const TuneReport& report, const Provenance& provenance) {
    auto at = std::find_if(record.measured.begin(), record.measured.end(), [&](const Measured& m) { return m.sizes >= sizes; });
    if (at == record.measured.end() || at->sizes != sizes) at = record.measured.insert(at, Measured{.sizes = sizes});
    at->name = name;
    at->default_config = report.default_config;
    at->floor_us = report.floor_us;
    const std::string run = provenance.id();
    for (const TuneCandidate& candidate : report.candidates) {
        if (!lasting(candidate)) continue;
        const auto old = std::find_if(at->timings.begin(), at->timings.end(),
                                      [&](const Timing& t) { return same_config(t.candidate.config, candidate.config); });
        Timing timing = {.candidate = candidate, .run = run, .date = provenance.date};
        if (old == at->timings.end()) {
            at->timings.push_back(std::move(timing));
            continue;
        }
        // Taken over from the record and not measured again: it stays the earlier run's.
        const bool untouched = old->candidate.status == candidate.status && old->candidate.samples == candidate.samples &&
                               old->candidate.median_us == candidate.median_us;
        if (!untouched) timing.rest = old->rest, *old = std::move(timing);
    }
    sort_timings(*at, record.bucket, provenance.sm);
    record.runs.emplace(run, provenance);
    std::erase_if(record.runs, [&](const auto& each) {
        return std::none_of(record.measured.begin(), record.measured.end(), [&](const Measured& m) {
            return std::any_of(m.timings.begin(), m.timings.end(), [&](const Timing& t) { return t.run == each.first; });
        });
    });
}

std::vector<TuneCandidate> known_of(const Record& record, const Sizes& sizes) {
    std::vector<TuneCandidate> known;
    if (const Measured* measured = record.find(sizes))
        for (const Timing& timing : measured->timings) known.push_back(timing.candidate);
    return known;
}

void merge(Record& record, const Record& other, int sm, const TunePolicy& policy, std::vector<std::string>* conflicts) {
    const DecodeConfig before = record.best(sm, policy), theirs = other.best(sm, policy);
    for (const Measured& from : other.measured) {
        auto to =
            std::find_if(record.measured.begin(), record.measured.end(), [&](const Measured& m) { return m.sizes >= from.sizes; });
        if (to == record.measured.end() || to->sizes != from.sizes) {
            record.measured.insert(to, from);
            continue;
        }
        to->name = std::max(to->name, from.name);
        to->floor_us = std::max(to->floor_us, from.floor_us);
        to->rest = std::max(to->rest, from.rest);
        if (compare_configs(to->default_config, from.default_config) < 0) to->default_config = from.default_config;
        for (const Timing& timing : from.timings) {
            const auto mine = std::find_if(to->timings.begin(), to->timings.end(), [&](const Timing& t) {
                return same_config(t.candidate.config, timing.candidate.config);
            });
            if (mine == to->timings.end()) {
                to->timings.push_back(timing);
            } else if (later(timing, *mine)) {
                *mine = timing;
            }
        }
        sort_timings(*to, record.bucket, sm);
    }
    record.runs.insert(other.runs.begin(), other.runs.end());
    record.rest = std::max(record.rest, other.rest);
    record.epoch = std::max(record.epoch, other.epoch);
    if (conflicts == nullptr || same_config(before, theirs)) return;
    conflicts->push_back(record.bucket.to_string() + ": " + config_text(before) + " against " + config_text(theirs) +
                         "; together " + config_text(record.best(sm, policy)));
}

}  // namespace sapwood::tune
