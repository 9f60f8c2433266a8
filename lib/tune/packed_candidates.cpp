// SPDX-License-Identifier: Apache-2.0
#include "tune/packed_candidates.h"

#include <algorithm>

#include "base/error.h"
#include "plan/packed_plan.h"
#include "plan/packed_tiles.h"
#include "tune/config_fields.h"
#include "tune/prune.h"

namespace sapwood::tune {
namespace {

// What a H100's tensor cores reach in long loops of each kind; other SMs in proportion to their number. For ranks in reports: all
// candidates are measured.
constexpr double kWgmmaFlopsPerMicrosecond = 600e6, kMmaFlopsPerMicrosecond = 350e6;
constexpr double kSmsOfThese = 132;

bool in_list(const std::vector<TuneCandidate>& found, const DecodeConfig& config) {
    return std::any_of(found.begin(), found.end(), [&](const TuneCandidate& c) { return same_config(c.config, config); });
}

/// Shared memory and threads, and whether this device can run it at all.
void resources(const PackedProblem& problem, const DeviceFacts& device, TuneCandidate& candidate) {
    const PackedConfig config = as_packed(candidate.config);
    if (const std::string why = why_illegal(problem, config, device.limits); !why.empty())
        return drop(candidate, "pruned:shape", why);
    candidate.shared_bytes = static_cast<int>(abi::packed_shared_bytes(shape_of(problem, config)));
    candidate.threads = (config.warps + config.producers) * 32;
    candidate.registers_available =
        std::min(255, device.limits.registers_sm / (candidate.threads * config.blocks) / 8 * 8);  // they are given in eights
    candidate.blocks_per_sm = blocks_per_sm(device, candidate.threads, candidate.registers_available, candidate.shared_bytes);
}

/// The fields that both kinds of configuration have.
template <class To, class From>
To tiles_of(const From& config) {
    return {.mainloop = config.mainloop,
            .warps = config.warps,
            .producers = config.producers,
            .block_kv = config.block_kv,
            .stages = config.stages,
            .blocks = config.blocks};
}

}  // namespace

DecodeConfig as_decode(const PackedConfig& config) { return tiles_of<DecodeConfig>(config); }
PackedConfig as_packed(const DecodeConfig& config) { return tiles_of<PackedConfig>(config); }

CandidateSet find_packed_candidates(const PackedProblem& problem, const Pack& pack, const DeviceFacts& device,
                                    const TuneOptions& options, std::span<const DecodeConfig> wanted) {
    CandidateSet set;
    set.list = packed_list();
    std::vector<DecodeConfig> given;
    if (!options.only_added) given = configs_of(*set.list.list);
    given.insert(given.end(), options.add.begin(), options.add.end());
    given.insert(given.end(), wanted.begin(), wanted.end());

    // The default first: everything is compared with it, and ties are its.
    set.all.push_back({.config = as_decode(choose_config(problem, as_packed(options.fix), device.limits))});
    for (const DecodeConfig& each : given) {
        DecodeConfig config = with_fixed(each, options.fix);
        config.split = config.rows = 0;
        if (!in_list(set.all, config)) set.all.push_back({.config = config});
    }
    const double sms = static_cast<double>(device.limits.sms) / kSmsOfThese;
    for (std::size_t i = 0; i < set.all.size(); ++i) {
        TuneCandidate& candidate = set.all[i];
        resources(problem, device, candidate);
        if (i > 0 && options.restrict_to && !options.restrict_to(candidate.config)) drop(candidate, "pruned:caller", "restrict_to");
        if (candidate.status != "ok") continue;
        const auto plan = make_packed_plan(problem, pack, as_packed(candidate.config), device.limits);
        const PackedPlanInfo& info = plan->info;
        const bool wgmma = candidate.config.mainloop == Mainloop::wgmma;
        const double pair_flops = info.visible_pairs > 0 ? info.flops / static_cast<double>(info.visible_pairs) : 0;
        const double in_tiles = static_cast<double>(info.tiles) * plan->block_q() * candidate.config.block_kv * pair_flops;
        candidate.items = info.blocks;
        candidate.model_us = in_tiles / (wgmma ? kWgmmaFlopsPerMicrosecond : kMmaFlopsPerMicrosecond) / sms;
        candidate.cost_us = options.cost ? options.cost(candidate) : candidate.model_us;
        const double row_bytes = static_cast<double>(problem.head_dim + problem.head_dim_v) * 2;
        const double bytes =
            row_bytes * static_cast<double>(info.rows * problem.q_heads + info.keys * std::int64_t{problem.kv_heads});
        set.floor_us = std::max(info.flops / kWgmmaFlopsPerMicrosecond / sms, bytes / kHbmBytesPerMicrosecond);
        if (i == 0 || !options.prune) continue;
        if (std::string reason = options.prune(candidate); !reason.empty()) drop(candidate, "pruned:caller", std::move(reason));
    }
    return set;
}

}  // namespace sapwood::tune
