// SPDX-License-Identifier: Apache-2.0
#include "tune/packed_candidates.h"

#include <algorithm>

#include "base/error.h"
#include "tune/config_fields.h"
#include "tune/prune.h"
#include "tune/same_plan.h"

namespace sapwood::tune {
namespace {

constexpr double kSmsOfThese = 132, kPeak = 600e6;

/// FLOPs a microsecond that a H100's tensor cores reach in long loops of each kind; other SMs in proportion to their number. For
/// ranks in reports: all candidates are measured.
double rate(Family pass, const DecodeConfig& config) {
    if (config.mainloop == Mainloop::wgmma) return 600e6;
    if (pass == Family::packed_forward) return 350e6;
    // The more keys stay, the less is read for each product; a second stage hides the copies.
    const double by_keys = config.block_kv >= 128 ? 350e6 : config.block_kv >= 64 ? 260e6 : 170e6;
    return config.stages > 1 ? by_keys : by_keys * 0.96;
}

bool in_list(const std::vector<TuneCandidate>& found, const DecodeConfig& config) {
    return std::any_of(found.begin(), found.end(), [&](const TuneCandidate& c) { return same_config(c.config, config); });
}

/// Shared memory and threads, and whether this device can run it at all.
void resources(const PackedPass& pass, const DeviceFacts& device, TuneCandidate& candidate) {
    const DecodeConfig& config = candidate.config;
    if (const std::string why = pass.why_illegal(config, device.limits); !why.empty()) return drop(candidate, "pruned:shape", why);
    candidate.shared_bytes = static_cast<int>(pass.shared_bytes(config));
    candidate.threads = (config.warps + config.producers) * 32;
    candidate.registers_available =
        std::min(255, device.limits.registers_sm / (candidate.threads * config.blocks) / 8 * 8);  // they are given in eights
    candidate.blocks_per_sm = blocks_per_sm(device, candidate.threads, candidate.registers_available, candidate.shared_bytes);
}

/// Bytes that a pass must move: a forward one reads Q, K and V and writes O; a backward one reads these and dO and writes dQ, dK,
/// dV.
double least_bytes(const PackedPass& pass, const Pack& pack) {
    const PackedProblem& problem = pass.problem();
    const double row_bytes = static_cast<double>(problem.head_dim + problem.head_dim_v) * 2;
    const double forward =
        row_bytes * static_cast<double>(pack.rows() * problem.q_heads + pack.keys() * std::int64_t{problem.kv_heads});
    return pass.family() == Family::packed_backward ? 2 * forward : forward;
}

}  // namespace

CandidateSet find_packed_candidates(const PackedPass& pass, const Pack& pack, const DeviceFacts& device, const TuneOptions& options,
                                    std::span<const DecodeConfig> wanted) {
    CandidateSet set;
    set.list = packed_list(pass.family());
    // Backward kernels keep what is not in their loop in local memory: 128 keys by mma.sync spill 8 bytes, and are the fastest.
    if (pass.family() == Family::packed_backward) set.tolerated_spill = 32;
    std::vector<DecodeConfig> given;
    if (!options.only_added) given = configs_of(*set.list.list);
    given.insert(given.end(), options.add.begin(), options.add.end());
    given.insert(given.end(), wanted.begin(), wanted.end());

    // The default first: everything is compared with it, and ties are its.
    set.all.push_back({.config = pass.by_default(options.fix, device.limits)});
    for (const DecodeConfig& each : given) {
        DecodeConfig config = with_fixed(each, options.fix);
        if (pass.family() == Family::packed_forward) config.split = 0;
        config.rows = 0;
        if (!in_list(set.all, config)) set.all.push_back({.config = config});
    }
    const double sms = static_cast<double>(device.limits.sms) / kSmsOfThese;
    std::vector<std::uint64_t> prints(set.all.size(), 0);
    for (std::size_t i = 0; i < set.all.size(); ++i) {
        TuneCandidate& candidate = set.all[i];
        resources(pass, device, candidate);
        if (i > 0 && options.restrict_to && !options.restrict_to(candidate.config)) drop(candidate, "pruned:caller", "restrict_to");
        if (candidate.status != "ok") continue;
        const PackedPass::Work work = pass.work(pack, candidate.config, device.limits);
        candidate.items = work.items;
        candidate.model_us = work.flops_in_tiles / rate(pass.family(), candidate.config) / sms;
        candidate.cost_us = options.cost ? options.cost(candidate) : candidate.model_us;
        set.floor_us = std::max(work.flops / kPeak / sms, least_bytes(pass, pack) / kHbmBytesPerMicrosecond);
        prints[i] = work.print;
        drop_same_plan(set.all, prints, i);
        if (i == 0 || !options.prune) continue;
        if (std::string reason = options.prune(candidate); !reason.empty()) drop(candidate, "pruned:caller", std::move(reason));
    }
    return set;
}

}  // namespace sapwood::tune
