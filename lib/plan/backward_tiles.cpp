// SPDX-License-Identifier: Apache-2.0
#include "plan/backward_tiles.h"

#include <algorithm>
#include <array>

#include "attention/backward_layout.h"
#include "attention/backward_warp_layout.h"
#include "base/error.h"
#include "plan/packed_tiles.h"

namespace sapwood {
namespace {

std::string number(std::int64_t value) { return std::to_string(value); }

constexpr PackedConfig by_warps(std::int32_t keys, std::int32_t stages) {
    return {.mainloop = Mainloop::mma,
            .warps = static_cast<std::int32_t>(abi::kBackwardWarps),
            .producers = 0,
            .block_kv = keys,
            .stages = stages,
            .blocks = 1};
}

/// Best first: the more keys stay, the less is read for each product; a second stage hides the copies, but is worth less than keys.
/// backward_warp_layout.h says which of them fit where.
constexpr std::array kCandidates = {
    PackedConfig{.mainloop = Mainloop::wgmma,
                 .warps = 8,
                 .producers = 4,
                 .block_kv = static_cast<std::int32_t>(abi::kBackwardKeys),
                 .stages = static_cast<std::int32_t>(abi::kBackwardStages),
                 .blocks = 1},
    by_warps(128, 2),
    by_warps(64, 2),
    by_warps(64, 1),
    by_warps(32, 2),
    by_warps(32, 1),
};

abi::BackwardWarpShape warp_shape(const PackedProblem& problem, const PackedConfig& config) {
    return {static_cast<unsigned>(problem.head_dim), static_cast<unsigned>(problem.head_dim_v),
            static_cast<unsigned>(config.block_kv), static_cast<unsigned>(config.stages)};
}

std::string why_warps_illegal(const PackedProblem& problem, const PackedConfig& config, const Limits& limits) {
    const abi::BackwardWarpShape shape = warp_shape(problem, config);
    if (config.warps != static_cast<std::int32_t>(abi::kBackwardWarps) || config.producers != 0)
        return "the backward pass by mma.sync has 8 compute warps and no copy warps, not " + config.to_string();
    if (config.block_kv != 32 && config.block_kv != 64 && config.block_kv != 128)
        return "block_kv " + number(config.block_kv) + " is not one of 32, 64, 128";
    if (config.stages < 1 || config.stages > 2) return "stages " + number(config.stages) + " is not 1 or 2";
    if (config.blocks < 1 || config.blocks > 2) return "blocks " + number(config.blocks) + " is not 1 or 2";
    if (!abi::backward_divides(shape))
        return "blocks of " + number(config.block_kv) + " keys do not divide head dims " + number(problem.head_dim) + " and " +
               number(problem.head_dim_v) + " among 8 warps";
    // Beside accumulators: fragments that are being multiplied, addresses, the step.
    constexpr int kOthers = 48;
    const int registers = std::min(255, limits.registers_sm / (config.warps * 32 * config.blocks));
    const int needed = static_cast<int>(abi::backward_accumulators(shape)) + kOthers;
    if (needed > registers)
        return "blocks of " + number(config.block_kv) + " keys with head dims " + number(problem.head_dim) + " and " +
               number(problem.head_dim_v) + " need about " + number(needed) + " registers a thread; " + number(registers) +
               " are there";
    return {};
}

std::string why_warpgroups_illegal(const PackedProblem& problem, const PackedConfig& config, const Limits& limits) {
    // The host target runs the same source, so it imitates what the SM has.
    if (limits.target != "sm_90a" && limits.target != "host")
        return "mainloop wgmma needs sm_90a (or host), the target is " + limits.target;
    for (const int dim : {problem.head_dim, problem.head_dim_v})
        if (dim != 64 && dim != 128)
            return "the backward pass by wgmma has head dims 64 and 128, not " + number(dim) +
                   "; leave mainloop open or ask for mma";
    const PackedConfig& only = kCandidates.front();
    if (config.warps != only.warps || config.producers != only.producers || config.block_kv != only.block_kv ||
        config.stages != only.stages || config.blocks != only.blocks)
        return "the backward pass by wgmma has " + only.to_string() + " alone, not " + config.to_string();
    return {};
}

}  // namespace

std::int64_t backward_shared_bytes(const PackedProblem& problem, const PackedConfig& config) {
    if (config.mainloop != Mainloop::wgmma) return abi::backward_warp_shared_bytes(warp_shape(problem, config));
    return abi::backward_shared_bytes({static_cast<unsigned>(problem.head_dim), static_cast<unsigned>(problem.head_dim_v)});
}

std::string why_backward_illegal(const PackedProblem& problem, const PackedConfig& config, const Limits& limits) {
    if (const int group = problem.q_heads / problem.kv_heads; config.heads != 0 && (config.heads < 0 || group % config.heads != 0))
        return "heads " + number(config.heads) + " that a work item walks do not divide the " + number(group) + " of a KV head";
    std::string why = config.mainloop == Mainloop::wgmma ? why_warpgroups_illegal(problem, config, limits)
                                                         : why_warps_illegal(problem, config, limits);
    if (!why.empty()) return why;
    return why_no_room(backward_shared_bytes(problem, config), config.blocks, limits);
}

PackedConfig choose_backward_config(const PackedProblem& problem, const PackedConfig& asked, const Limits& limits) {
    std::string reason;
    for (const PackedConfig& candidate : kCandidates) {
        if (asked.mainloop != Mainloop::choose && asked.mainloop != candidate.mainloop) continue;
        const PackedConfig config = merged(asked, candidate);
        const std::string why = why_backward_illegal(problem, config, limits);
        if (why.empty()) return config;
        reason = why;
    }
    raise(ErrorCode::kUnsupportedDevice, "no packed backward kernel for head dims " + number(problem.head_dim) + " and " +
                                             number(problem.head_dim_v) + " on " + limits.target + " with " + asked.to_string() +
                                             " (0: any): " + reason);
}

}  // namespace sapwood
