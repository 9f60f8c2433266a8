// SPDX-License-Identifier: Apache-2.0
#include "plan/tiles.h"

#include <algorithm>
#include <cmath>
#include <initializer_list>

#include "base/error.h"

namespace sapwood {
namespace {

bool one_of(std::int64_t value, std::initializer_list<int> legal) {
    return std::find(legal.begin(), legal.end(), value) != legal.end();
}

[[noreturn]] void refuse(const std::string& text) { raise(ErrorCode::kInvalidProblem, text); }

int registers_a_thread(const DecodeConfig& config, const Limits& limits) {
    // Warps are placed on four sub-cores; registers are given out in eights a thread.
    const int warps = (config.warps + config.producers + 3) / 4 * 4 * config.blocks;
    return std::min(255, limits.registers_sm / (warps * 32) / 8 * 8);
}

/// Accumulators, query fragments, scores of two chunks, and addressing, from the compiler's reports of the shipped shapes.
/// `moved`: what compute warps have where copy warps hand registers over.
int registers_needed(const abi::DecodeShape& shape, const abi::DecodeRegisters& moved) {
    // Accumulators, a tile's scores, the weights of the one before.
    if (abi::decode_query_shared(shape))
        return static_cast<int>(shape.head_dim_v / 2 + shape.block_kv / 2 + shape.block_kv / 4) + 40;
    const int query = abi::decode_query_in_registers(shape) ? static_cast<int>(shape.head_dim) / 4 : 8;
    // As few as will do, the usual, and with fragments of a pair of chunks in flight.
    const int others = moved.compute == 0 ? 76 : moved.compute < 128 ? 48 : 92;
    return static_cast<int>(shape.head_dim_v) / 2 + query + others;
}

}  // namespace

DecodeProblem complete(const DecodeProblem& asked) {
    DecodeProblem problem = asked;
    if (problem.head_dim_v == 0) problem.head_dim_v = problem.head_dim;
    if (problem.q_heads <= 0 || problem.kv_heads <= 0 || problem.q_heads % problem.kv_heads != 0) {
        refuse("q_heads " + std::to_string(problem.q_heads) + " must be a positive multiple of kv_heads " +
               std::to_string(problem.kv_heads));
    }
    if (group_of(problem) > 64) refuse("GQA group " + std::to_string(group_of(problem)) + " (q_heads / kv_heads) is above 64");
    for (const int dim : {problem.head_dim, problem.head_dim_v}) {
        if (!one_of(dim, {64, 96, 128, 192, 256}))
            refuse("head dim " + std::to_string(dim) + " is not one of 64, 96, 128, 192, 256");
    }
    if (problem.dtype != DType::fp16 && problem.dtype != DType::bf16) {
        refuse("dtype " + std::to_string(static_cast<int>(problem.dtype)) + " is not fp16 (1) or bf16 (2)");
    }
    if (problem.kv_dtype != KvDType::as_q && problem.kv_dtype != KvDType::e4m3) {
        refuse("kv_dtype " + std::to_string(static_cast<int>(problem.kv_dtype)) + " is not as_q (0) or e4m3 (1)");
    }
    if (!one_of(problem.page_size, {0, 1, 16, 32, 64, 128})) {
        refuse("page size " + std::to_string(problem.page_size) + " is not one of 0 (contiguous), 1, 16, 32, 64, 128");
    }
    if (!std::isfinite(problem.scale) || !std::isfinite(problem.softcap) || problem.softcap < 0) {
        refuse("scale " + std::to_string(problem.scale) + " and softcap " + std::to_string(problem.softcap) +
               " must be finite, the soft-cap not negative");
    }
    if (problem.scale == 0) problem.scale = 1.0f / std::sqrt(static_cast<float>(problem.head_dim));
    return problem;
}

abi::DecodeShape shape_of(const DecodeProblem& problem, const DecodeConfig& config) {
    const abi::Mainloop mainloop = config.mainloop == Mainloop::wgmma ? abi::Mainloop::wgmma : abi::Mainloop::mma;
    return {.head_dim = static_cast<unsigned>(problem.head_dim),
            .head_dim_v = static_cast<unsigned>(problem.head_dim_v),
            .group = static_cast<unsigned>(group_of(problem)),
            .warps = static_cast<unsigned>(config.warps),
            .producers = static_cast<unsigned>(config.producers),
            .block_kv = static_cast<unsigned>(config.block_kv),
            .stages = static_cast<unsigned>(config.stages),
            .mask = problem.mask,
            .kv_bytes = abi::decode_tile_element(static_cast<unsigned>(kv_dtype_bytes(problem.kv_dtype, problem.dtype)), mainloop),
            .mainloop = mainloop};
}

RegisterEstimate register_estimate(const DecodeProblem& problem, const DecodeConfig& config, const Limits& limits) {
    const abi::DecodeShape shape = shape_of(problem, config);
    // With two blocks on SM 9.0 alone: for SM 10.0 the compiler spills 48 bytes.
    const bool can_move = limits.sm >= 90 && limits.sm < (config.blocks == 1 ? 110 : 100);
    const abi::DecodeRegisters moved =
        can_move ? abi::decode_registers(shape, static_cast<unsigned>(config.blocks)) : abi::DecodeRegisters{};
    return {.needed = registers_needed(shape, moved),
            .available = moved.compute != 0 ? static_cast<int>(moved.compute) : registers_a_thread(config, limits)};
}

const char* mainloop_name(Mainloop mainloop) noexcept {
    switch (mainloop) {
        case Mainloop::mma:
            return "mma";
        case Mainloop::wgmma:
            return "wgmma";
        case Mainloop::choose:
            break;
    }
    return "choose";
}

std::string why_illegal(const DecodeProblem& problem, const DecodeConfig& config, const Limits& limits) {
    if (config.mainloop != Mainloop::mma && config.mainloop != Mainloop::wgmma)
        return "mainloop " + std::to_string(static_cast<int>(config.mainloop)) + " is not mma (1) or wgmma (2)";
    if (config.mainloop == Mainloop::wgmma) {
        // The products of templates/attention/decode_warpgroup_products.h: two warpgroups; 64 keys or 128.
        if (limits.sm != 90) return "mainloop wgmma needs SM 9.0; " + limits.target + " has mma";
        if (problem.kv_dtype != KvDType::as_q && config.block_kv != 64)
            return std::string("mainloop wgmma widens kv_dtype ") + kv_dtype_name(problem.kv_dtype) +
                   " on the way to shared memory, tiles of 64 keys, not " + std::to_string(config.block_kv);
        if (!one_of(problem.head_dim, {64, 128}) || !one_of(problem.head_dim_v, {64, 128}))
            return "mainloop wgmma is made for head dims 64 and 128, not " + std::to_string(problem.head_dim) + "/" +
                   std::to_string(problem.head_dim_v);
        if (config.warps != 8 || config.producers != 4 || !one_of(config.block_kv, {64, 128}) || config.blocks != 1)
            return "mainloop wgmma runs with warps 8, producers 4, block_kv 64 or 128, blocks 1, not " + config.to_string();
    }
    if (!one_of(config.warps, {4, 8})) return "warps " + std::to_string(config.warps) + " is not 4 or 8";
    if (!one_of(config.block_kv, {32, 64, 128})) return "block_kv " + std::to_string(config.block_kv) + " is not 32, 64 or 128";
    if (!one_of(config.producers, {1, 2, 4}) || !one_of(config.block_kv / config.producers, {16, 32})) {
        return "producers " + std::to_string(config.producers) + " must be 1, 2 or 4 with 16 or 32 of the " +
               std::to_string(config.block_kv) + " keys a stage each";
    }
    if (config.stages < 2 || config.stages > 16) return "stages " + std::to_string(config.stages) + " is not in 2..16";
    if (config.blocks < 1 || config.blocks > 4) return "blocks " + std::to_string(config.blocks) + " is not in 1..4";
    if (config.split < 0) return "split " + std::to_string(config.split) + " is negative";
    if (config.rows < 0) return "rows " + std::to_string(config.rows) + " is negative";
    const abi::DecodeShape shape = shape_of(problem, config);
    const int shared = static_cast<int>(abi::decode_shared_bytes(shape));
    if (shared > limits.max_shared_block) {
        return "needs " + std::to_string(shared) + " bytes of shared memory a block; " + limits.target + " allows " +
               std::to_string(limits.max_shared_block);
    }
    if ((shared + limits.reserved_shared_block) * config.blocks > limits.max_shared_sm) {
        return std::to_string(config.blocks) + " blocks of " + std::to_string(shared) + " bytes do not fit the " +
               std::to_string(limits.max_shared_sm) + " bytes of shared memory of an SM";
    }
    if (const RegisterEstimate registers = register_estimate(problem, config, limits); registers.needed > registers.available) {
        return "needs about " + std::to_string(registers.needed) + " registers a thread; " + std::to_string(registers.available) +
               " are left with " + std::to_string(config.blocks) + " blocks an SM";
    }
    return {};
}

std::optional<DecodeConfig> find_config(const DecodeProblem& problem, const DecodeConfig& asked, const Limits& limits,
                                        std::string* reason) {
    const auto fixed = [](int asked_value, int value) { return asked_value != 0 ? asked_value : value; };
    std::string first_reason;
    // In order of preference, `stages` the fewest to accept: wide blocks re-read shared KV least. A ring of two cannot load one
    // stage, hold one in use and have one in reserve; it is taken only where nothing else fits (head dim 256 in 99 KB).
    const DecodeConfig wide = {.mainloop = Mainloop::mma, .warps = 8, .producers = 4, .block_kv = 64, .stages = 3, .blocks = 1};
    // A stage is no smaller than the query that it also has to hold: 64 keys of half the bytes would leave half of it empty.
    DecodeConfig bytes = wide;
    if (problem.kv_dtype == KvDType::e4m3) bytes.block_kv = 128;
    const DecodeConfig small = {.mainloop = Mainloop::mma, .warps = 4, .producers = 4, .block_kv = 64, .stages = 3, .blocks = 1};
    const DecodeConfig tiny = {.mainloop = Mainloop::mma, .warps = 4, .producers = 2, .block_kv = 32, .stages = 3, .blocks = 1};
    const DecodeConfig least = {.mainloop = Mainloop::mma, .warps = 4, .producers = 2, .block_kv = 32, .stages = 2, .blocks = 1};
    for (const DecodeConfig& row : {bytes, wide, problem.head_dim <= 128 ? small : tiny, tiny, least}) {
        DecodeConfig config = {.mainloop = asked.mainloop != Mainloop::choose ? asked.mainloop : row.mainloop,
                               .warps = fixed(asked.warps, row.warps),
                               .producers = fixed(asked.producers, row.producers),
                               .block_kv = fixed(asked.block_kv, row.block_kv),
                               .stages = 0,
                               .blocks = fixed(asked.blocks, row.blocks),
                               .split = asked.split,
                               .rows = asked.rows};
        if (asked.producers == 0 && config.block_kv / config.producers > 32) config.producers = config.block_kv / 32;
        if (asked.producers == 0 && config.block_kv / config.producers < 16) config.producers = config.block_kv / 16;
        // As deep a ring as fits, up to what a stream needs in flight.
        for (int stages = fixed(asked.stages, 6); stages >= fixed(asked.stages, row.stages); --stages) {
            config.stages = stages;
            const std::string why = why_illegal(problem, config, limits);
            if (why.empty()) return config;
            if (first_reason.empty()) first_reason = config.to_string() + " " + why;
        }
    }
    if (reason != nullptr) *reason = first_reason;
    return std::nullopt;
}

DecodeConfig choose_config(const DecodeProblem& problem, const DecodeConfig& asked, const Limits& limits) {
    std::string reason;
    if (const auto found = find_config(problem, asked, limits, &reason)) return *found;
    raise(asked.to_string() == DecodeConfig{}.to_string() ? ErrorCode::kUnsupportedDevice : ErrorCode::kInvalidProblem,
          "no decode configuration for head dims " + std::to_string(problem.head_dim) + "/" + std::to_string(problem.head_dim_v) +
              " runs on " + limits.target + ": " + reason);
}

const char* tune_match_name(TuneMatch match) noexcept {
    switch (match) {
        case TuneMatch::none:
            return "none";
        case TuneMatch::exact:
            return "exact";
        case TuneMatch::near_bucket:
            return "near bucket";
        case TuneMatch::other_gpu:
            return "other GPU";
        case TuneMatch::fallback:
            return "default";
    }
    return "unknown";
}

std::string DecodeConfig::to_string() const {
    return "{\"mainloop\":\"" + std::string(mainloop_name(mainloop)) + "\",\"warps\":" + std::to_string(warps) +
           ",\"producers\":" + std::to_string(producers) + ",\"block_kv\":" + std::to_string(block_kv) +
           ",\"stages\":" + std::to_string(stages) + ",\"blocks\":" + std::to_string(blocks) +
           ",\"split\":" + std::to_string(split) + ",\"rows\":" + std::to_string(rows) + "}";
}

}  // namespace sapwood
