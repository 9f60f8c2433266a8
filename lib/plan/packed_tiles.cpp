// SPDX-License-Identifier: Apache-2.0
#include "plan/packed_tiles.h"

#include <algorithm>
#include <array>
#include <cmath>

#include "base/error.h"

namespace sapwood {
namespace {

std::string number(std::int64_t value) { return std::to_string(value); }

bool one_of(std::int64_t value, std::initializer_list<int> legal) {
    return std::find(legal.begin(), legal.end(), value) != legal.end();
}

/// Best first; which of them can run depends on head dims and shared memory. Wide tiles cost the fewest exponentials and barriers a
/// pair; the last ones fit an SM of 99 KB at head dim 256.
constexpr std::array kCandidates = {
    PackedConfig{.mainloop = Mainloop::wgmma, .warps = 8, .producers = 4, .block_kv = 128, .stages = 2, .blocks = 1},
    PackedConfig{.mainloop = Mainloop::wgmma, .warps = 8, .producers = 4, .block_kv = 64, .stages = 3, .blocks = 1},
    PackedConfig{.mainloop = Mainloop::wgmma, .warps = 8, .producers = 4, .block_kv = 64, .stages = 2, .blocks = 1},
    PackedConfig{.mainloop = Mainloop::mma, .warps = 8, .producers = 4, .block_kv = 64, .stages = 2, .blocks = 1},
    PackedConfig{.mainloop = Mainloop::mma, .warps = 8, .producers = 4, .block_kv = 32, .stages = 2, .blocks = 1},
    PackedConfig{.mainloop = Mainloop::mma, .warps = 4, .producers = 4, .block_kv = 32, .stages = 2, .blocks = 1},
};

}  // namespace

PackedConfig merged(PackedConfig asked, const PackedConfig& candidate) {
    const auto take = [](auto& field, auto value) {
        if (field == decltype(value){}) field = value;
    };
    take(asked.mainloop, candidate.mainloop);
    take(asked.warps, candidate.warps);
    take(asked.producers, candidate.producers);
    take(asked.block_kv, candidate.block_kv);
    take(asked.stages, candidate.stages);
    take(asked.blocks, candidate.blocks);
    take(asked.heads, candidate.heads);
    return asked;
}

std::string PackedConfig::to_string() const {
    return std::string(mainloop_name(mainloop)) + " warps " + number(warps) + " producers " + number(producers) + " block_kv " +
           number(block_kv) + " stages " + number(stages) + " blocks " + number(blocks) +
           (heads > 1 ? " heads " + number(heads) : "");
}

PackedProblem complete(const PackedProblem& asked) {
    const auto refuse = [](const std::string& text) { raise(ErrorCode::kInvalidProblem, text); };
    PackedProblem problem = asked;
    if (problem.head_dim_v == 0) problem.head_dim_v = problem.head_dim;
    if (problem.q_heads <= 0 || problem.kv_heads <= 0 || problem.q_heads % problem.kv_heads != 0)
        refuse("q_heads " + number(problem.q_heads) + " must be a positive multiple of kv_heads " + number(problem.kv_heads));
    for (const int dim : {problem.head_dim, problem.head_dim_v}) {
        if (!one_of(dim, {64, 96, 128, 192, 256})) refuse("head dim " + number(dim) + " is not one of 64, 96, 128, 192, 256");
    }
    if (problem.dtype != DType::fp16 && problem.dtype != DType::bf16)
        refuse("dtype " + number(static_cast<int>(problem.dtype)) + " is not fp16 (1) or bf16 (2)");
    if (!std::isfinite(problem.scale) || !std::isfinite(problem.softcap) || problem.softcap < 0)
        refuse("scale " + std::to_string(problem.scale) + " and softcap " + std::to_string(problem.softcap) +
               " must be finite, the soft-cap not negative");
    if (problem.scale == 0) problem.scale = 1.0f / std::sqrt(static_cast<float>(problem.head_dim));
    return problem;
}

abi::PackedShape shape_of(const PackedProblem& problem, const PackedConfig& config) {
    return {.head_dim = static_cast<unsigned>(problem.head_dim),
            .head_dim_v = static_cast<unsigned>(problem.head_dim_v),
            .warps = static_cast<unsigned>(config.warps),
            .producers = static_cast<unsigned>(config.producers),
            .block_kv = static_cast<unsigned>(config.block_kv),
            .stages = static_cast<unsigned>(config.stages),
            .warpgroups = config.mainloop == Mainloop::wgmma};
}

std::string why_no_room(std::int64_t shared, std::int32_t blocks, const Limits& limits) {
    if (shared <= limits.max_shared_block && (shared + limits.reserved_shared_block) * blocks <= limits.max_shared_sm) return {};
    return number(shared) + " bytes of shared memory a block, " + number(blocks) + " blocks an SM; " + limits.target + " has " +
           number(limits.max_shared_block) + " a block and " + number(limits.max_shared_sm) + " an SM";
}

bool can_share_block(const PackedProblem& problem, const PackedConfig& config, std::int32_t heads) {
    return one_of(heads, {1, 2, 4, 8}) && heads <= config.warps && problem.q_heads / problem.kv_heads % heads == 0;
}

std::string why_illegal(const PackedProblem& problem, const PackedConfig& config, const Limits& limits) {
    if (!one_of(config.block_kv, {32, 64, 128})) return "block_kv " + number(config.block_kv) + " is not one of 32, 64, 128";
    if (config.stages < 1 || config.stages > 8) return "stages " + number(config.stages) + " is outside 1..8";
    if (config.blocks < 1 || config.blocks > 4) return "blocks " + number(config.blocks) + " is outside 1..4";
    if (config.heads > 1 && !can_share_block(problem, config, config.heads))
        return "heads " + number(config.heads) + " in a block of rows is not 1, 2, 4 or 8, a divisor of the " +
               number(problem.q_heads / problem.kv_heads) + " of a KV head, with 16 rows of each for " + number(config.warps) +
               " warps";
    if (config.mainloop == Mainloop::wgmma) {
        // The host target runs the same source, so it imitates what the SM has.
        if (limits.target != "sm_90a" && limits.target != "host")
            return "mainloop wgmma needs sm_90a (or host), the target is " + limits.target;
        if (problem.head_dim % 64 != 0 || problem.head_dim_v % 64 != 0)
            return "mainloop wgmma needs head dims that are multiples of 64, not " + number(problem.head_dim) + " and " +
                   number(problem.head_dim_v);
        if (config.warps != 8 || config.producers != 4 || config.blocks != 1)
            return "mainloop wgmma has 8 compute warps, 4 copy warps and a block an SM, not " + config.to_string();
        if (config.block_kv == 32) return "mainloop wgmma has tiles of 64 or 128 keys, not 32";
        // Scores, weights, output: registers of a thread that has 224.
        const int needed = config.block_kv / 2 + config.block_kv / 4 + problem.head_dim_v / 2;
        if (needed > 180)
            return "tiles of " + number(config.block_kv) + " keys and head dim " + number(problem.head_dim_v) + " of V need " +
                   number(needed) + " registers a thread for scores and output; 180 are left to them";
    } else {
        if (!one_of(config.warps, {4, 8})) return "warps " + number(config.warps) + " is not 4 or 8";
        if (!one_of(config.producers, {1, 2, 4})) return "producers " + number(config.producers) + " is not 1, 2 or 4";
        const int registers =
            std::min(255, limits.registers_sm / ((config.warps + config.producers + 3) / 4 * 128 * config.blocks));
        const int needed = problem.head_dim_v / 2 + config.block_kv / 2 + (problem.head_dim <= 128 ? problem.head_dim / 4 : 8) + 40;
        if (needed > registers)
            return "this kernel needs about " + number(needed) + " registers a thread; " + number(registers) + " are there";
    }
    return why_no_room(abi::packed_shared_bytes(shape_of(problem, config)), config.blocks, limits);
}

PackedConfig choose_config(const PackedProblem& problem, const PackedConfig& asked, const Limits& limits) {
    std::string reason;
    for (const PackedConfig& candidate : kCandidates) {
        const PackedConfig config = merged(asked, candidate);
        const std::string why = why_illegal(problem, config, limits);
        if (why.empty()) return config;
        reason = why;
    }
    raise(ErrorCode::kUnsupportedDevice, "no packed kernel for head dims " + number(problem.head_dim) + " and " +
                                             number(problem.head_dim_v) + " on " + limits.target + ": " + reason);
}

}  // namespace sapwood
