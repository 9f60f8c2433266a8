// SPDX-License-Identifier: Apache-2.0
// Constants of the packed backward kernel with the mma.sync main loop, and its view of a block's shared memory.
#pragma once

#include "attention/backward_warp_layout.h"
#include "attention/packed_mask.h"
#include "memory/swizzle.h"

namespace sapwood::kernel {

/// Everything this kernel fixes at compile time, from the rendered Config.
template <class Config>
struct BackwardWarpTraits : Config {
    static constexpr abi::BackwardWarpShape kShape = {Config::kHeadDim, Config::kHeadDimV, Config::kBlockKv, Config::kStages};
    static_assert(abi::backward_divides(kShape));
    static constexpr u32 kKeys = Config::kBlockKv, kRows = abi::backward_step_rows(kShape);
    static constexpr u32 kThreads = abi::kBackwardWarps * 32;
    static constexpr u32 kKeyWarps = abi::backward_key_warps(kShape), kRowWarps = abi::kBackwardWarps / kKeyWarps;
    static constexpr u32 kWarpKeys = kKeys / kKeyWarps, kWarpRows = kRows / kRowWarps;  // of a score tile
    // dQ has its own split, by columns first: they are what K is read for.
    static constexpr u32 kSumColumnWarps = Config::kHeadDim % 64 == 0 ? 4 : 2, kSumRowWarps = abi::kBackwardWarps / kSumColumnWarps;

    using KTile = Swizzle<Config::kHeadDim / 8>;
    using VTile = Swizzle<Config::kHeadDimV / 8>;
    using QTile = KTile;
    using DOutTile = VTile;
    using WeightTile = Swizzle<kRows / 8>;  // a row for each key
    static constexpr u32 kKeyBytes = kKeys * Config::kHeadDim * 2, kValueBytes = kKeys * Config::kHeadDimV * 2;
    static constexpr u32 kQueryBytes = abi::backward_warp_rows_bytes(kShape, Config::kHeadDim);
    static constexpr u32 kDOutBytes = abi::backward_warp_rows_bytes(kShape, Config::kHeadDimV);

    static constexpr u32 kValues = kKeyBytes;  // K comes first
    static constexpr u32 kQueries = kValues + kValueBytes;
    static constexpr u32 kDOuts = kQueries + Config::kStages * kQueryBytes;
    static constexpr u32 kWeights = kDOuts + Config::kStages * kDOutBytes;
    static constexpr u32 kDScores = kWeights + abi::backward_weights_bytes(kShape);
    static constexpr u32 kLse = kDScores + abi::backward_weights_bytes(kShape);
    static constexpr u32 kRowSums = kLse + Config::kStages * kRows * 4;
    static constexpr u32 kHeaders = kRowSums + Config::kStages * kRows * 4;
    static constexpr u32 kItem = kHeaders + abi::kBackwardHeaders * abi::kPackedHeaderBytes;
    static constexpr u32 kWalk = kItem + abi::kPackedItemBytes;
    static constexpr u32 kBarriers = kWalk + abi::kPackedItemBytes;
    static constexpr u32 kBarrierCount = abi::backward_warp_barriers(kShape);
    static_assert(kBarriers + abi::align_up(abi::backward_warp_barriers(kShape) * 8, 16) ==
                  abi::backward_warp_shared_bytes(kShape));
};

/// What a block works on.
struct alignas(16) BackwardWarpItem {
    i32 key_begin;
    u32 keys, slot;
    u32 kv_head;
    u32 steps;  // of all query heads of the group; kStop: no more items
    u32 next;   // ticket of the item behind this one
    static constexpr u32 kStop = ~0u;
};
/// Where the item's list of row tiles stands. In shared memory, because one thread needs it and every thread would hold it.
struct alignas(16) BackwardWalk {
    u32 span_begin, tiles;  // of the item, for each query head anew
    u32 span, tiles_left;   // of this head
    i32 row;
    u32 steps_left;  // of this span
    u32 run_begin, runs;
    u32 head;
};
/// In a fixed order, behind the item: where its turns are.
struct alignas(16) BackwardWarpTurns {
    u32 first;  // of its tiles, in BackwardParams::turns
    u32 part;   // as in abi::BlockTurns
    u32 steps;  // of this head, so far
};
static_assert(sizeof(BackwardWarpItem) + sizeof(BackwardWarpTurns) <= abi::kPackedItemBytes &&
              sizeof(BackwardWalk) <= abi::kPackedItemBytes);

/// Barriers go by the number of the step, counted through all items: a block's stages, headers and parities are all known from it.
template <class Traits>
struct BackwardWarpShared {
    u8* base;
    u32 address;

    SAPWOOD_DEVICE BackwardWarpShared() : base(shared_memory()), address(shared_address(base)) {}
    SAPWOOD_DEVICE static u32 stage(u32 step) { return step % Traits::kStages; }
    SAPWOOD_DEVICE u32 values() const { return address + Traits::kValues; }
    SAPWOOD_DEVICE u32 query(u32 step) const { return address + Traits::kQueries + stage(step) * Traits::kQueryBytes; }
    SAPWOOD_DEVICE u32 dout(u32 step) const { return address + Traits::kDOuts + stage(step) * Traits::kDOutBytes; }
    SAPWOOD_DEVICE u32 lse_address(u32 step) const { return address + Traits::kLse + stage(step) * Traits::kRows * 4; }
    SAPWOOD_DEVICE u32 row_sums_address(u32 step) const { return address + Traits::kRowSums + stage(step) * Traits::kRows * 4; }
    SAPWOOD_DEVICE const f32* lse(u32 step) const {
        return reinterpret_cast<const f32*>(base + Traits::kLse + stage(step) * Traits::kRows * 4);
    }
    SAPWOOD_DEVICE const f32* row_sums(u32 step) const {
        return reinterpret_cast<const f32*>(base + Traits::kRowSums + stage(step) * Traits::kRows * 4);
    }
    SAPWOOD_DEVICE TileHeader& header(u32 step) const {
        return *reinterpret_cast<TileHeader*>(base + Traits::kHeaders + step % abi::kBackwardHeaders * abi::kPackedHeaderBytes);
    }
    SAPWOOD_DEVICE BackwardWarpItem& item() const { return *reinterpret_cast<BackwardWarpItem*>(base + Traits::kItem); }
    SAPWOOD_DEVICE BackwardWarpTurns& turns() const {
        return *reinterpret_cast<BackwardWarpTurns*>(base + Traits::kItem + sizeof(BackwardWarpItem));
    }
    /// In a fixed order: blocks that add to the step's row tile before this one. Behind the header's words.
    SAPWOOD_DEVICE u32& before(u32 step) const {
        static_assert(sizeof(TileHeader) + sizeof(u32) <= abi::kPackedHeaderBytes);
        return *reinterpret_cast<u32*>(reinterpret_cast<u8*>(&header(step)) + sizeof(TileHeader));
    }
    SAPWOOD_DEVICE BackwardWalk& walk() const { return *reinterpret_cast<BackwardWalk*>(base + Traits::kWalk); }

    SAPWOOD_DEVICE u32 barrier(u32 number) const { return address + Traits::kBarriers + number * 8; }
    /// The rows of a step have come.
    SAPWOOD_DEVICE u32 full(u32 step) const { return barrier(stage(step)); }
    SAPWOOD_DEVICE void wait_full(u32 step) const { mbarrier_wait(full(step), step / Traits::kStages & 1); }
    /// All have read the rows of a step; have written dS; have read it.
    SAPWOOD_DEVICE u32 rows_read() const { return barrier(Traits::kStages); }
    SAPWOOD_DEVICE u32 dscores_written() const { return barrier(Traits::kStages + 1); }
    SAPWOOD_DEVICE u32 dscores_read() const { return barrier(Traits::kStages + 2); }
    /// That all have passed one of these in this step, or in the one before.
    SAPWOOD_DEVICE static void wait_all(u32 barrier, u32 step) { mbarrier_wait(barrier, step & 1); }
    SAPWOOD_DEVICE static void wait_all_before(u32 barrier, u32 step) { mbarrier_wait(barrier, step & 1 ^ 1); }
    SAPWOOD_DEVICE void init() const {
        for (u32 i = 0; i < Traits::kBarrierCount; ++i) mbarrier_init(barrier(i), Traits::kThreads);
    }
};

}  // namespace sapwood::kernel
