// SPDX-License-Identifier: Apache-2.0
// Products by mma.sync: each warp by itself, on 16 rows and the chunks that some of them see. For every SM from 8.0.
#pragma once

#include "attention/decode_rows.h"

namespace sapwood::kernel {

template <class Traits>
struct WarpProducts : DecodeRows<Traits> {
    using Chunks = NoChunks;
    using Rows = DecodeRows<Traits>;
    using Operands = typename Rows::Operands;
    using Rows::kSteps;
    using Rows::lane;
    // Both chunks of a pair at once keep twice as many products in flight, where there are registers for their scores (and for
    // bytes on the way to operands).
    static constexpr bool kPairs = (Traits::kMoveRegisters && (kRegistersMove || Traits::kKvBytes == 2)) ||
                                   Traits::kHeadDimV < 128 || (Traits::kWarps == 4 && Traits::kHeadDimV < 256);

    using Rows::Rows;

    SAPWOOD_DEVICE void begin() const {}
    SAPWOOD_DEVICE void end() const {}
    SAPWOOD_DEVICE void before_copies() const {}

    SAPWOOD_DEVICE void attend_item(RingPosition<Traits::kStages>& at, u32 tiles) {
        for (u32 tile = 0; tile < tiles; ++tile) {
            this->shared.ring.wait_full(at);
            attend_tile(at.stage);
            this->release(at.stage);
            at.advance();
        }
    }

private:
    const u32 bit_ = warp_id() * Traits::kChunks;  // of a tile's words

    /// The chunks that the planner has given this warp, in pairs, wherever in the tile they are. Nothing here waits for a chunk's
    /// own words: the products would be behind that.
    SAPWOOD_DEVICE void attend_tile(u32 stage) {
        u32 own = own_chunks(stage);
        while (own != 0) {
            const u32 first = take_lowest(own);
            if (kPairs && own != 0) {
                const u32 index[2] = {first, take_lowest(own)};
                const ChunkView chunks[2] = {this->chunk(stage, index[0]), this->chunk(stage, index[1])};
                attend<2>(stage, index, chunks);
            } else {
                const u32 index[1] = {first};
                const ChunkView chunks[1] = {this->chunk(stage, first)};
                attend<1>(stage, index, chunks);
            }
        }
    }
    SAPWOOD_DEVICE u32 own_chunks(u32 stage) const {
        static_assert(Traits::kChunks * Traits::kWarps <= 64);
        const u32 word = this->shared.chunks(stage)[Traits::kChunks * Traits::kWarps <= 32 ? 0 : bit_ / 32].tile_word;
        return word >> bit_ % 32 & ((1u << Traits::kChunks) - 1);
    }
    SAPWOOD_DEVICE static u32 take_lowest(u32& bits) {
        // Of four bits by table, two bits an entry: to look for a bit takes 40 cycles, and the first product waits for it.
        constexpr u32 kLowestOfFour = 0x12131210;
        const u32 lowest = Traits::kChunks == 4 ? kLowestOfFour >> bits * 2 & 3 : lowest_bit(bits);
        bits &= bits - 1;
        return lowest;
    }

    /// kCount chunks of one tile, all of their keys at once.
    template <u32 kCount>
    SAPWOOD_DEVICE void attend(u32 stage, const u32 (&index)[kCount], const ChunkView (&chunks)[kCount]) {
        const u32 k_tile = this->shared.stage(stage) + index[0] * 16 * Traits::KTile::kPitch;
        const u32 v_tile = this->shared.stage(stage) + Traits::kKTileBytes + index[0] * 16 * Traits::VTile::kPitch;
        u32 down[kCount];
        SAPWOOD_UNROLL for (u32 c = 0; c < kCount; ++c) down[c] = (index[c] - index[0]) * 16;
        f32 s[kCount * 2][4] = {};
        SAPWOOD_NO_UNROLL for (u32 first = 0; first < kSteps; first += Operands::kUnrolled) {
            Operands::template multiply_keys<kCount>(s, k_tile, down, first, lane, [&](u32(&held)[4], u32 i) -> const u32(&)[4] {
                if constexpr (Traits::kQueryInRegisters) return this->query[i];
                ldmatrix_x4(held, query_address<Traits>(this->query_hold(), first + i, lane));
                return held;
            });
        }
        this->transform(s);
        this->mask_unless_whole(s, chunks, stage, index);
        f32 rescale[2];
        if (this->weigh(s, rescale)) this->state.rescale_out(rescale[0], rescale[1]);
        const RowAddresses<typename Traits::VTile> values(v_tile, lane % 16, lane / 16);
        SAPWOOD_UNROLL for (u32 c = 0; c < kCount; ++c) {
            u32 p[4];
            pack_weights<typename Traits::KvElement::Weight>(p, s[c * 2], s[c * 2 + 1]);
            Operands::multiply_values(this->state.out, p, values, down[c]);
        }
    }
};

}  // namespace sapwood::kernel
