// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "attention/decode_layout.h"
#include "attention/kv_element.h"
#include "isa/isa.h"
#include "memory/panels.h"
#include "memory/ring.h"
#include "memory/swizzle.h"

namespace sapwood::kernel {

/// Everything a decode kernel fixes at compile time, from the rendered Config.
template <class Config>
struct DecodeTraits : Config {
    using Element = typename Config::Element;
    static constexpr u32 kKvBytes = abi::decode_tile_element(Config::KvElement::kBytes, Config::kMainloop);  // in shared memory
    static constexpr bool kWidens = kKvBytes != Config::KvElement::kBytes;                                   // on the way there
    static constexpr abi::DecodeShape kShape = {Config::kHeadDim,   Config::kHeadDimV, Config::kGroup,  Config::kWarps,
                                                Config::kProducers, Config::kBlockKv,  Config::kStages, Config::kMask,
                                                kKvBytes,           Config::kMainloop};
    static constexpr u32 kBlockQ = abi::decode_block_q(kShape);
    static constexpr u32 kChunks = Config::kBlockKv / abi::kChunkTokens;  // a tile
    static constexpr u32 kComputeThreads = Config::kWarps * 32;
    static constexpr bool kQueryInRegisters = abi::decode_query_in_registers(kShape);
    static constexpr bool kQueryShared = abi::decode_query_shared(kShape);  // as an operand of wgmma
    static constexpr bool kValuesApart = abi::decode_values_apart(kShape);
    static constexpr bool kMasksStaged = abi::decode_masks_staged(kShape);

    static constexpr abi::DecodeRegisters kRegisters = abi::decode_registers(kShape, Config::kBlocks);
    static constexpr bool kMoveRegisters = kRegisters.compute != 0;
    static constexpr bool kFewRegisters = kMoveRegisters && kRegisters.compute < 128;

    // Warps that multiply together, 16 rows each; where there are more of these units than the rows need, units share rows and take
    // turns over the keys.
    static constexpr bool kWarpgroups = Config::kMainloop == abi::Mainloop::wgmma;
    static constexpr u32 kUnitWarps = kWarpgroups ? 4 : 1;
    static_assert(!kWidens || Config::kBlockKv / Config::kProducers == abi::kChunkTokens, "a chunk at a time for each copy warp");

    template <u32 kColumns>
    using KvTile = typename Select<kWarpgroups, Bricks<kColumns>, Swizzle<kColumns>>::Type;
    using QTile = typename Select<kQueryShared, Panels<Config::kHeadDim / 8, kBlockQ>, Swizzle<Config::kHeadDim / 8>>::Type;
    static constexpr u32 kKColumns = Config::kHeadDim * kKvBytes / 16, kVColumns = Config::kHeadDimV * kKvBytes / 16;
    using KTile = KvTile<kKColumns>;
    using VTile = KvTile<kVColumns>;
    static constexpr u32 kKTileBytes = Config::kBlockKv * Config::kHeadDim * kKvBytes;

    static_assert(!kValuesApart || kBlockQ * Config::kHeadDim * 2 <= kKTileBytes, "Q in K's half of a stage");

    static constexpr u32 kStageBytes = abi::decode_stage_bytes(kShape);
    static constexpr u32 kHeaderBytes = abi::decode_header_bytes(kShape);
    static constexpr u32 kQueryHold = Config::kStages * kStageBytes;
    static constexpr u32 kHeaders = kQueryHold + abi::decode_query_hold_bytes(kShape);
    static constexpr u32 kMailbox = kHeaders + Config::kStages * kHeaderBytes;
    static constexpr u32 kNotes = kMailbox + 16;
    static constexpr u32 kBarriers = kNotes + Config::kWarps * 16;
    static constexpr u32 kValueBarriers = kBarriers + 2 * Config::kStages * 8;
    static constexpr u32 kStagger = kValueBarriers + (kValuesApart ? 2 * Config::kStages * 8 : 0);
    static_assert(abi::align_up(kStagger + 8, 16) == abi::decode_shared_bytes(kShape));
};

/// What is copied of a tile at a time.
enum class TilePart : u32 { keys, values, all };
constexpr bool has_keys(TilePart part) { return part != TilePart::values; }
constexpr bool has_values(TilePart part) { return part != TilePart::keys; }

/// Chunks of K and V that something else than the copy warps fetches: none.
struct NoChunks {
    template <class Params>
    SAPWOOD_DEVICE static void prepare(const Params&) {}
    template <TilePart, class Params>
    SAPWOOD_DEVICE static bool fetch(const Params&, u32, u32, u32, u32, u32, u32) {
        return false;
    }
};

/// First words of a stage's header; the tile's chunks follow at byte 32.
struct alignas(16) StageHeader {
    u32 kind;
    u32 kv_head;  // of a query stage
    u32 items;   // of the stop stage: work items of the launch, all heads; of a query stage: bits of the keys' factor, if they have
                 // one
    u32 merges;  // of the stop stage; of a query stage: bits of the values' factor
    abi::Item item;  // of a query stage
};

struct alignas(16) ItemNote {
    u32 request_begin, rows, kv_head, v_scale;
};

/// The block's shared memory, seen through the traits.
template <class Traits>
struct DecodeShared {
    u8* base;
    u32 address;
    Ring<Traits::kStages> ring;
    Ring<Traits::kStages> values;  // where kValuesApart: V's halves of the stages; `ring` is then all that is not V

    SAPWOOD_DEVICE DecodeShared()
        : base(shared_memory()),
          address(shared_address(base)),
          ring{address + Traits::kBarriers},
          values{address + Traits::kValueBarriers} {}
    SAPWOOD_DEVICE u32 stage(u32 index) const { return address + index * Traits::kStageBytes; }
    SAPWOOD_DEVICE u32 value_tile(u32 index) const { return stage(index) + Traits::kKTileBytes; }
    SAPWOOD_DEVICE f32* scratch(u32 index) const { return reinterpret_cast<f32*>(base + index * Traits::kStageBytes); }
    SAPWOOD_DEVICE StageHeader* header(u32 index) const {
        return reinterpret_cast<StageHeader*>(base + Traits::kHeaders + index * Traits::kHeaderBytes);
    }
    SAPWOOD_DEVICE abi::Chunk* chunks(u32 index) const { return reinterpret_cast<abi::Chunk*>(header(index) + 1); }
    /// Of the requests of the item, of one chunk of the tile.
    SAPWOOD_DEVICE u32* masks(u32 index, u32 chunk) const {
        return reinterpret_cast<u32*>(chunks(index) + Traits::kChunks) + chunk * abi::decode_requests(Traits::kShape);
    }
    /// Of a scratch stage. In the stage itself, like the scratch: warps that are an item ahead write another stage's.
    SAPWOOD_DEVICE f32* scratch_stats(u32 index) const { return reinterpret_cast<f32*>(header(index) + 1); }
    /// What a compute warp need not hold in registers while the item streams by.
    SAPWOOD_DEVICE ItemNote& note(u32 warp) const { return reinterpret_cast<ItemNote*>(base + Traits::kNotes)[warp]; }
    SAPWOOD_DEVICE u32* mailbox() const { return reinterpret_cast<u32*>(base + Traits::kMailbox); }
};

}  // namespace sapwood::kernel
