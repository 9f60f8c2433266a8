// SPDX-License-Identifier: Apache-2.0
// The packed backward kernel's constants, and its view of a block's shared memory.
#pragma once

#include "attention/backward_layout.h"
#include "attention/packed_mask.h"
#include "memory/panels.h"
#include "memory/ring.h"

namespace sapwood::kernel {

/// Everything the backward kernel fixes at compile time, from the rendered Config.
template <class Config>
struct BackwardTraits : Config {
    static constexpr abi::BackwardShape kShape = {Config::kHeadDim, Config::kHeadDimV};
    static constexpr u32 kKeys = abi::kBackwardKeys, kRows = abi::kRowTile, kStages = abi::kBackwardStages;
    static constexpr u32 kItems = abi::kBackwardItems;
    static constexpr u32 kComputeWarps = 8;
    // 56 + 2 * 224 = the 3 * 168 of the launch.
    static constexpr u32 kProducerRegisters = 56;
    static constexpr u32 kConsumerRegisters = 224;

    using KTile = Panels<Config::kHeadDim / 8, kKeys>;
    using VTile = Panels<Config::kHeadDimV / 8, kKeys>;
    using QTile = Panels<Config::kHeadDim / 8, kRows>;
    using DOutTile = Panels<Config::kHeadDimV / 8, kRows>;
    using DScoreTile = Panels<kKeys / 8, kRows>;  // a row for each query row
    static constexpr u32 kKeyBytes = kKeys * Config::kHeadDim * 2, kValueBytes = kKeys * Config::kHeadDimV * 2;
    static constexpr u32 kQueryBytes = abi::backward_rows_bytes(Config::kHeadDim);
    static constexpr u32 kDOutBytes = abi::backward_rows_bytes(Config::kHeadDimV);
    static constexpr u32 kDScoreBytes = kRows * kKeys * 2;
    static constexpr u32 kSumBytes = kRows * Config::kHeadDim * 4 / 2;  // dQ of one warpgroup: half of the columns

    static constexpr u32 kValues = kItems * kKeyBytes;  // K comes first
    static constexpr u32 kQueries = kValues + kValueBytes;
    static constexpr u32 kDOuts = kQueries + kStages * kQueryBytes;
    static constexpr u32 kDScores = kDOuts + kStages * kDOutBytes;
    static constexpr u32 kSums = kDScores + kStages * kDScoreBytes;
    static constexpr u32 kLse = kSums + 2 * kSumBytes;
    static constexpr u32 kRowSums = kLse + kStages * kRows * 4;
    static constexpr u32 kHeaders = kRowSums + kStages * kRows * 4;
    static constexpr u32 kItem = kHeaders + kStages * abi::kPackedHeaderBytes;
    static constexpr u32 kTurn = kItem + abi::kPackedItemBytes;
    static constexpr u32 kBarriers = kTurn + 16;
    static_assert(kBarriers + abi::align_up(abi::backward_barriers() * 8, 16) == abi::backward_shared_bytes(kShape));
};

/// What the compute warps work on next; comes with K.
struct alignas(16) BackwardItem {
    i32 key_begin;
    u32 keys_slot;  // abi::KeyBlock::keys, and slot in the high half
    u32 kv_head;
    u32 steps;  // row tiles, of all query heads of the group; kStop: no more
    SAPWOOD_DEVICE u32 keys() const { return keys_slot & 0xffff; }
    SAPWOOD_DEVICE u32 slot() const { return keys_slot >> 16; }
    static constexpr u32 kStop = ~0u;
};

template <class Traits>
struct BackwardShared {
    u8* base;
    u32 address;
    Ring<Traits::kItems> items;  // K and the item
    Ring<1> values;
    Ring<Traits::kStages> queries, douts;
    Ring<1> turns;  // that of the next tile of dQ has come

    SAPWOOD_DEVICE BackwardShared()
        : base(shared_memory()),
          address(shared_address(base)),
          items{address + Traits::kBarriers},
          values{address + Traits::kBarriers + Traits::kItems * 16},
          queries{address + Traits::kBarriers + Traits::kItems * 16 + 16},
          douts{address + Traits::kBarriers + Traits::kItems * 16 + 16 + Traits::kStages * 16},
          turns{address + Traits::kBarriers + Traits::kItems * 16 + 48 + Traits::kStages * 32} {}
    /// dQ of a warpgroup, on its way out.
    SAPWOOD_DEVICE Ring<1> sums(u32 warpgroup) const {
        return {address + Traits::kBarriers + Traits::kItems * 16 + 16 + Traits::kStages * 32 + warpgroup * 16};
    }
    SAPWOOD_DEVICE u32 key_tile(u32 slot) const { return address + slot * Traits::kKeyBytes; }
    SAPWOOD_DEVICE u32 value_tile() const { return address + Traits::kValues; }
    SAPWOOD_DEVICE u32 query(u32 stage) const { return address + Traits::kQueries + stage * Traits::kQueryBytes; }
    SAPWOOD_DEVICE u32 dout(u32 stage) const { return address + Traits::kDOuts + stage * Traits::kDOutBytes; }
    SAPWOOD_DEVICE u32 dscore(u32 stage) const { return address + Traits::kDScores + stage * Traits::kDScoreBytes; }
    SAPWOOD_DEVICE u32 sum(u32 warpgroup) const { return address + Traits::kSums + warpgroup * Traits::kSumBytes; }
    SAPWOOD_DEVICE F32x4* sum_words(u32 warpgroup) const {
        return reinterpret_cast<F32x4*>(base + Traits::kSums + warpgroup * Traits::kSumBytes);
    }
    SAPWOOD_DEVICE const f32* lse(u32 stage) const {
        return reinterpret_cast<const f32*>(base + Traits::kLse + stage * Traits::kRows * 4);
    }
    SAPWOOD_DEVICE const f32* row_sums(u32 stage) const {
        return reinterpret_cast<const f32*>(base + Traits::kRowSums + stage * Traits::kRows * 4);
    }
    SAPWOOD_DEVICE TileHeader& header(u32 stage) const {
        return *reinterpret_cast<TileHeader*>(base + Traits::kHeaders + stage * abi::kPackedHeaderBytes);
    }
    /// In a fixed order: where the tile's turn is. Behind the header's words.
    SAPWOOD_DEVICE u32& turn(u32 stage) const {
        static_assert(sizeof(TileHeader) + sizeof(u32) <= abi::kPackedHeaderBytes);
        return *reinterpret_cast<u32*>(base + Traits::kHeaders + stage * abi::kPackedHeaderBytes + sizeof(TileHeader));
    }
    SAPWOOD_DEVICE BackwardItem& item(u32 slot) const {
        static_assert(Traits::kItems * kItemPitch <= abi::kPackedItemBytes && sizeof(BackwardItem) + sizeof(u32) <= kItemPitch);
        return *reinterpret_cast<BackwardItem*>(base + Traits::kItem + slot * kItemPitch);
    }
    /// In a fixed order: parts of the item's block before it. Behind the item's words.
    SAPWOOD_DEVICE u32& part(u32 slot) const {
        return *reinterpret_cast<u32*>(base + Traits::kItem + slot * kItemPitch + sizeof(BackwardItem));
    }
    /// Of the tile whose turn has come: which of the dq_sums' tiles it is (kNoTarget: there are no more), and whether nothing has
    /// been added to it yet.
    SAPWOOD_DEVICE u32& target() const { return reinterpret_cast<u32*>(base + Traits::kTurn)[0]; }
    SAPWOOD_DEVICE u32& is_first() const { return reinterpret_cast<u32*>(base + Traits::kTurn)[1]; }
    static constexpr u32 kNoTarget = ~0u;
    static constexpr u32 kItemPitch = 32;
};

}  // namespace sapwood::kernel
