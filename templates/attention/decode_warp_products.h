// SPDX-License-Identifier: Apache-2.0
// Products by mma.sync: each warp by itself, on 16 rows and the chunks that some of them see. For every SM from 8.0.
#pragma once

#include "attention/decode_rows.h"

namespace sapwood::kernel {

/// Chunks of K and V that something else than the copy warps fetches: none.
struct NoChunks {
    template <class Params>
    SAPWOOD_DEVICE static void prepare(const Params&) {}
    template <class Params>
    SAPWOOD_DEVICE static bool fetch(const Params&, u32, u32, u32, u32, u32, u32) {
        return false;
    }
};

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
        u32 turn = 0;
        for (u32 tile = 0; tile < tiles; ++tile) {
            this->shared.ring.wait_full(at);
            if constexpr (Traits::kMask) {
                attend_seen(at.stage, turn);
            } else {
                attend_neighbours(at.stage, turn);
            }
            this->release(at.stage);
            at.advance();
        }
    }

private:
    /// Chunks, or pairs of them, go round the warps that share a row block; `turn` counts those of the item.
    SAPWOOD_DEVICE void attend_neighbours(u32 stage, u32& turn) {
        for (u32 pair = 0; pair < Traits::kChunks / 2; ++pair) {
            if (!my_turn(turn)) continue;
            const u32 index[2] = {pair * 2, pair * 2 + 1};
            const ChunkView chunks[2] = {this->chunk(stage, index[0]), this->chunk(stage, index[1])};
            const bool first = sees(chunks[0]), second = sees(chunks[1]);
            if (kPairs && first && second) {
                attend<2>(stage, index, chunks);
                continue;
            }
            SAPWOOD_NO_UNROLL for (u32 c = 0; c < 2; ++c) {
                if (c == 0 ? !first : !second) continue;
                const u32 only_index[1] = {pair * 2 + c};
                const ChunkView only[1] = {c == 0 ? chunks[0] : chunks[1]};
                attend<1>(stage, only_index, only);
            }
        }
    }

    /// The same where the rows of a block see different chunks, as those of trees do: pairs of those that this warp's rows see,
    /// wherever in the tile they are.
    SAPWOOD_DEVICE void attend_seen(u32 stage, u32& turn) {
        u32 seen = warp_ballot(lane < Traits::kChunks && sees(this->chunk(stage, lane % Traits::kChunks)));
        while (seen != 0) {
            const u32 first = take_lowest(seen);
            if (kPairs && seen != 0) {
                const u32 index[2] = {first, take_lowest(seen)};
                if (!my_turn(turn)) continue;
                const ChunkView chunks[2] = {this->chunk(stage, index[0]), this->chunk(stage, index[1])};
                attend<2>(stage, index, chunks);
            } else {
                if (!my_turn(turn)) continue;
                const u32 index[1] = {first};
                const ChunkView chunks[1] = {this->chunk(stage, first)};
                attend<1>(stage, index, chunks);
            }
        }
    }
    SAPWOOD_DEVICE static u32 take_lowest(u32& bits) {
        const u32 lowest = lowest_bit(bits);
        bits &= bits - 1;
        return lowest;
    }
    SAPWOOD_DEVICE bool my_turn(u32& turn) const {
        const bool mine = turn == this->part;
        if (++turn >= this->parts) turn = 0;
        return mine;
    }

    SAPWOOD_DEVICE bool sees(const ChunkView& chunk) const { return chunk.meets(this->row_block * 16, 16); }

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
