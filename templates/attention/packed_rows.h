// SPDX-License-Identifier: Apache-2.0
// What a compute warp of the packed forward kernel does with its 16 query rows, whoever multiplies: mask, exponentials, the result.
#pragma once

#include "attention/decode_epilogue.h"
#include "attention/packed_mask.h"
#include "attention/softmax_state.h"

namespace sapwood::kernel {

template <class Traits>
struct PackedRows {
    using Element = typename Traits::Element;
    static constexpr u32 kBlocks = Traits::kBlockKv / 8;
    static constexpr u32 kSteps = Traits::kHeadDim / 16;

    const abi::PackedForwardParams& params;
    const PackedShared<Traits>& shared;
    const typename Traits::Score score;
    const u32 lane;
    SoftmaxState<Traits::kHeadDimV> state;
    RingPosition<Traits::kStages> keys, values;
    PackedItem item{};

    SAPWOOD_DEVICE PackedRows(const abi::PackedForwardParams& p, const PackedShared<Traits>& s)
        : params(p), shared(s), score(p.scale_log2, p.softcap_log2), lane(lane_id()) {}

    /// Every lane arrives for itself: what it has read is then ordered before the copy side's next write by its own arrival, which
    /// race checkers can follow.
    SAPWOOD_DEVICE void release(u32 empty_barrier) const { mbarrier_arrive(empty_barrier); }
    SAPWOOD_DEVICE void release_keys() {
        release(shared.keys.empty(keys.stage));
        keys.advance();
    }
    SAPWOOD_DEVICE void release_values() {
        release(shared.values.empty(values.stage));
        values.advance();
    }

    /// Of this lane's two rows, the first one's place in the block; the other is 8 below.
    SAPWOOD_DEVICE u32 block_row() const { return warp_id() * 16 + lane / 4; }

    /// Soft-cap, where there is one, then the mask, where the tile needs one.
    SAPWOOD_DEVICE void finish_scores(f32 (&s)[kBlocks][4], u32 stage) const {
        if constexpr (Traits::Score::kTransforms) {
            SAPWOOD_UNROLL for (u32 i = 0; i < kBlocks; ++i) {
                SAPWOOD_UNROLL for (u32 j = 0; j < 4; ++j) s[i][j] = score.transform(s[i][j]);
            }
        }
        const TileHeader& tile = shared.header(stage);
        if (tile.runs != 0) mask_tile(s, tile, params.runs, item.row_begin + static_cast<i32>(block_row()), lane, beyond_runs());
    }
    SAPWOOD_DEVICE auto beyond_runs() const {
        if constexpr (Traits::kArrays) {
            return StartEnd<false>{params.start_q, params.end_k, params.rows};
        } else {
            return RunsAlone{};
        }
    }

    /// Scores to weights, into the running maximum and sum. True if the output is still to be multiplied by `rescale`.
    SAPWOOD_DEVICE bool weigh(f32 (&s)[kBlocks][4], f32 (&rescale)[2]) {
        f32 m0[2] = {s[0][0], s[0][1]}, m1[2] = {s[0][2], s[0][3]};
        SAPWOOD_UNROLL for (u32 i = 1; i < kBlocks; ++i) {
            SAPWOOD_UNROLL for (u32 j = 0; j < 2; ++j) {
                m0[j] = max_f32(m0[j], s[i][j]);
                m1[j] = max_f32(m1[j], s[i][2 + j]);
            }
        }
        const f32 factor = score.factor();
        const bool raised = state.raise(max_f32(m0[0], m0[1]) * factor, max_f32(m1[0], m1[1]) * factor, rescale);
        state.exponentials(s, factor);
        return raised;
    }
    /// Weights as A fragments of the products with V.
    SAPWOOD_DEVICE static void pack(u32 (&p)[kBlocks / 2][4], const f32 (&s)[kBlocks][4]) {
        SAPWOOD_UNROLL for (u32 c = 0; c < kBlocks / 2; ++c) {
            SAPWOOD_UNROLL for (u32 j = 0; j < 2; ++j) {
                p[c][j * 2] = pack2<Element>(s[c * 2 + j][0], s[c * 2 + j][1]);
                p[c][j * 2 + 1] = pack2<Element>(s[c * 2 + j][2], s[c * 2 + j][3]);
            }
        }
    }

    SAPWOOD_DEVICE void write() {
        state.reduce_sum();
        SAPWOOD_UNROLL for (u32 h = 0; h < 2; ++h) {
            const u32 in_block = block_row() + h * 8;
            const bool mine = in_block < item.rows;
            const i64 row = item.row_begin + static_cast<i64>(in_block);
            const RowEnd end = state.end(h);
            if (mine && lane % 4 == 0 && params.lse != nullptr)
                store_f32(params.lse + static_cast<i64>(item.head) * params.rows + row, end.lse());
            u8* out = static_cast<u8*>(params.out.data) + row * params.out.token_stride +
                      static_cast<i64>(item.head) * params.out.head_stride + lane % 4 * 16;
            // A lane's own columns are pairs, eight apart: exchanged in fours, they are 16 bytes a store and whole sectors.
            SAPWOOD_UNROLL for (u32 i = 0; i < Traits::kHeadDimV / 8; i += 4) {
                u32 x[4];
                SAPWOOD_UNROLL for (u32 j = 0; j < 4; ++j) x[j] =
                    pack2<Element>(state.out[i + j][h * 2] * end.inverse, state.out[i + j][h * 2 + 1] * end.inverse);
                quad_transpose(x);
                if (mine) store_16(out + i * 16, x[0], x[1], x[2], x[3]);
            }
        }
    }
};

}  // namespace sapwood::kernel
