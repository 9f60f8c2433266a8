// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>

#include "plan/array_list.h"
#include "plan/backward_list.h"
#include "plan/limits.h"
#include "sapwood/packed.h"

namespace sapwood {

/// Host side of a backward plan. `device` is what the engine keeps beside it.
struct PackedBackwardPlan::Impl {
    PackedProblem problem;
    PackedConfig config;
    PackedBackwardOptions options;
    Limits limits;
    BackwardList list;
    ArrayList arrays;  // as in PackedPlan::Impl
    PackedBackwardInfo info;
    std::int32_t bundles = 1;        // of a KV head's query heads, an item each; dK and dV are then added up for every block
    std::int32_t section_heads = 1;  // KV heads, or bundles, that are worked on together
    std::vector<std::string> keys;
    std::shared_ptr<void> device;
    std::shared_ptr<std::atomic<std::uint64_t>> launches;  // counted in a trace; null: in none

    /// fp32 values in which dK and dV of blocks in several parts are added up.
    std::int64_t kv_sums() const {
        return static_cast<std::int64_t>(list.slots.size()) * problem.kv_heads * config.block_kv *
               (problem.head_dim + problem.head_dim_v);
    }
    /// Whether the first addition to a tile of dQ is a plain write, so that its sums need no zeros.
    bool writes_first() const { return config.mainloop == Mainloop::wgmma; }
    /// Counters behind those sums, 32-bit words: of the tiles of dQ; then of kv_sums in a fixed order, else the tiles' claims. A
    /// multiple of four; none where sums are added to as it comes.
    std::int64_t arrivals() const {
        const std::int64_t row_sums = row_tiles() * problem.q_heads;
        const std::int64_t others =
            options.deterministic ? static_cast<std::int64_t>(list.slots.size()) * problem.kv_heads : row_sums;
        return writes_first() || options.deterministic ? (row_sums + others + 3) / 4 * 4 : 0;
    }
    std::int64_t row_tiles() const { return (info.rows + abi::kRowTile - 1) / abi::kRowTile; }
};

/// Throws kInvalidProblem, kUnsupportedDevice.
std::unique_ptr<PackedBackwardPlan::Impl> make_backward_plan(const PackedProblem& problem, const Pack& pack,
                                                             const PackedBackwardOptions& options, const Limits& limits);

}  // namespace sapwood
