// SPDX-License-Identifier: Apache-2.0
// The packed forward kernel's constants, and its view of a block's shared memory.
#pragma once

#include "attention/packed_layout.h"
#include "attention/packed_mask.h"
#include "isa/isa.h"
#include "memory/panels.h"
#include "memory/ring.h"
#include "memory/swizzle.h"

namespace sapwood::kernel {

/// Everything a packed kernel fixes at compile time, from the rendered Config.
template <class Config>
struct PackedTraits : Config {
    using Element = typename Config::Element;
    static constexpr abi::PackedShape kShape = {Config::kHeadDim,
                                                Config::kHeadDimV,
                                                Config::kWarps,
                                                Config::kProducers,
                                                Config::kBlockKv,
                                                Config::kStages,
                                                Config::kMainloop == abi::Mainloop::wgmma};
    static constexpr u32 kBlockQ = abi::packed_block_q(kShape);
    static constexpr u32 kComputeThreads = Config::kWarps * 32;
    static constexpr bool kWarpgroups = Config::kMainloop == abi::Mainloop::wgmma;
    static constexpr u32 kUnitWarps = kWarpgroups ? 4 : 1;  // warps that multiply together
    static constexpr u32 kUnitRows = kUnitWarps * 16;

    // A block's rows are kTokens query rows of each of kHeads heads that share their keys, head by head. A warp's are of one head.
    static constexpr u32 kTokens = kBlockQ / Config::kHeads;
    static_assert(kTokens * Config::kHeads == kBlockQ && kTokens % 16 == 0);
    SAPWOOD_DEVICE static u32 token_of(u32 block_row) { return Config::kHeads == 1 ? block_row : block_row % kTokens; }
    SAPWOOD_DEVICE static u32 head_of(u32 block_row) { return Config::kHeads == 1 ? 0 : block_row / kTokens; }

    // Two warpgroups and a copy warp among four that hand their registers over: 56 + 2 * 224 = the 3 * 168 of the launch.
    static constexpr u32 kProducerRegisters = 56;
    static constexpr u32 kConsumerRegisters = 224;

    template <u32 kColumns, u32 kRows>
    using Tile = typename Select<kWarpgroups, Panels<kColumns, kRows>, Swizzle<kColumns>>::Type;
    using QTile = Tile<Config::kHeadDim / 8, kBlockQ>;
    using KTile = Tile<Config::kHeadDim / 8, Config::kBlockKv>;
    using VTile = Tile<Config::kHeadDimV / 8, Config::kBlockKv>;
    static constexpr u32 kQueryBytes = abi::packed_query_bytes(kShape);
    static constexpr u32 kKeyBytes = abi::packed_key_bytes(kShape);
    static constexpr u32 kValueBytes = abi::packed_value_bytes(kShape);

    static constexpr u32 kQueries = abi::packed_query_stages(kShape);
    static constexpr u32 kKeys = kQueries * kQueryBytes;  // Q comes first
    static constexpr u32 kValues = kKeys + Config::kStages * kKeyBytes;
    static constexpr u32 kHeaders = kValues + Config::kStages * kValueBytes;
    static constexpr u32 kItem = kHeaders + Config::kStages * abi::kPackedHeaderBytes;
    static constexpr u32 kBarriers = kItem + abi::kPackedItemBytes;
    static_assert(kBarriers + abi::align_up(abi::packed_barriers(kShape) * 8, 16) == abi::packed_shared_bytes(kShape));
    static_assert(kKeys % 1024 == 0 && kKeyBytes % 1024 == 0 && kValueBytes % 1024 == 0, "swizzled tiles begin on 1024 bytes");
};

/// What the compute warps work on next; comes with Q.
struct alignas(16) PackedItem {
    i32 row_begin;
    u32 rows;
    u32 head;   // in kHeads
    u32 tiles;  // kStop: no more
    static constexpr u32 kStop = ~0u;
};

static_assert(sizeof(TileHeader) <= abi::kPackedHeaderBytes && 2 * sizeof(PackedItem) + 8 <= abi::kPackedItemBytes);

/// The block's shared memory, seen through the traits.
template <class Traits>
struct PackedShared {
    u8* base;
    u32 address;
    Ring<Traits::kQueries> query;
    Ring<Traits::kStages> keys, values;

    SAPWOOD_DEVICE PackedShared()
        : base(shared_memory()),
          address(shared_address(base)),
          query{address + Traits::kBarriers},
          keys{address + Traits::kBarriers + Traits::kQueries * 16},
          values{address + Traits::kBarriers + (Traits::kQueries + Traits::kStages) * 16} {}
    SAPWOOD_DEVICE u32 query_block(u32 stage) const { return address + stage * Traits::kQueryBytes; }
    SAPWOOD_DEVICE u32 key_tile(u32 stage) const { return address + Traits::kKeys + stage * Traits::kKeyBytes; }
    SAPWOOD_DEVICE u32 value_tile(u32 stage) const { return address + Traits::kValues + stage * Traits::kValueBytes; }
    SAPWOOD_DEVICE TileHeader& header(u32 stage) const {
        return *reinterpret_cast<TileHeader*>(base + Traits::kHeaders + stage * abi::kPackedHeaderBytes);
    }
    SAPWOOD_DEVICE PackedItem& item(u32 stage) const { return reinterpret_cast<PackedItem*>(base + Traits::kItem)[stage]; }
    SAPWOOD_DEVICE u32* mailbox() const { return reinterpret_cast<u32*>(&item(2)); }
};

}  // namespace sapwood::kernel
