// SPDX-License-Identifier: Apache-2.0
// What a compute warp of the packed forward kernel does with its 16 query rows, whoever multiplies: mask, exponentials, the result.
#pragma once

#include "attention/decode_epilogue.h"
#include "attention/packed_mask.h"
#include "attention/weights.h"

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
    RingPosition<Traits::kQueries> query;
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

    /// Waits for the next item and its Q.
    SAPWOOD_DEVICE void take_item() {
        shared.query.wait_full(query);
        item = shared.item(query.stage);
    }
    SAPWOOD_DEVICE void release_query() {
        release(shared.query.empty(query.stage));
        query.advance();
    }

    /// Of this lane's two rows, the first one's place in the block; the other is 8 below.
    SAPWOOD_DEVICE u32 block_row() const { return warp_id() * 16 + lane / 4; }

    /// Soft-cap, where there is one, then the mask, where the tile has runs to compare with.
    SAPWOOD_DEVICE void finish_scores(f32 (&s)[kBlocks][4], u32 stage, u32 runs) const {
        if constexpr (Traits::Score::kTransforms) {
            SAPWOOD_UNROLL for (u32 i = 0; i < kBlocks; ++i) {
                SAPWOOD_UNROLL for (u32 j = 0; j < 4; ++j) s[i][j] = score.transform(s[i][j]);
            }
        }
        if (runs != 0)
            mask_tile(s, shared.header(stage), params.runs, item.row_begin + static_cast<i32>(Traits::token_of(block_row())), lane,
                      beyond_runs<Traits::kArrays, false>(params.start_q, params.end_k, params.rows));
    }

    /// Scores to weights, into the running maximum and sum. True if the output is still to be multiplied by `rescale`. A row of the
    /// lane's two at a time, so that the largest score of one is found under the exponentials of the other.
    SAPWOOD_DEVICE bool weigh(f32 (&s)[kBlocks][4], f32 (&rescale)[2]) {
        const f32 factor = score.factor();
        f32 m[2][2];
        const auto largest = [&](u32 half, u32 i) {
            SAPWOOD_UNROLL for (u32 j = 0; j < 2; ++j) {
                const f32 x = s[i][half * 2 + j];
                m[half][j] = i == 0 ? x : max_f32(m[half][j], x);
            }
        };
        rescale[0] = rescale[1] = 1.0f;
        SAPWOOD_UNROLL for (u32 i = 0; i < kBlocks; ++i) largest(0, i);
        bool raised = state.raise_row(0, max_f32(m[0][0], m[0][1]), factor, rescale[0]);
        state.exponentials_of_row(0, s, factor, [&](u32 i) { largest(1, i); });
        raised |= state.raise_row(1, max_f32(m[1][0], m[1][1]), factor, rescale[1]);
        state.exponentials_of_row(1, s, factor, [](u32) {});
        return raised;
    }
    /// Weights as A fragments of the products with V.
    using Weights = u32[kBlocks / 2][4];
    /// Weights by the maxima as they are; false if scores have outgrown them, which weigh() then sees to.
    SAPWOOD_DEVICE bool try_weights(Weights& p, const f32 (&s)[kBlocks][4]) {
        return kernel::try_weights<Element>(state, p, s, score.factor());
    }

    /// Of row `half` of this lane's two, with its sum complete: writes the LSE, gives the factor of the output.
    SAPWOOD_DEVICE f32 end_row(u32 half) const {
        const u32 in_block = block_row() + half * 8;
        const RowEnd end = state.end(half);
        if (is_there(in_block) && lane % 4 == 0 && params.lse != nullptr)
            store_f32(params.lse + static_cast<i64>(head(in_block)) * params.rows + row(in_block), end.lse());
        return end.inverse;
    }
    /// Of row `in_block` of the item's block: whether there is one, which it is, and where its result goes.
    SAPWOOD_DEVICE bool is_there(u32 in_block) const { return Traits::token_of(in_block) < item.rows; }
    SAPWOOD_DEVICE i64 row(u32 in_block) const { return item.row_begin + static_cast<i64>(Traits::token_of(in_block)); }
    SAPWOOD_DEVICE u32 head(u32 in_block) const { return item.head * Traits::kHeads + Traits::head_of(in_block); }
    SAPWOOD_DEVICE u8* out_row(u32 in_block) const {
        return static_cast<u8*>(params.out.data) + row(in_block) * params.out.token_stride +
               static_cast<i64>(head(in_block)) * params.out.head_stride;
    }
    SAPWOOD_DEVICE void write() {
        state.reduce_sum();
        SAPWOOD_UNROLL for (u32 h = 0; h < 2; ++h) {
            const f32 factor = end_row(h);
            const u32 in_block = block_row() + h * 8;
            PairColumns::store<Element>(out_row(in_block) + lane % 4 * 16, is_there(in_block), state.out, h, factor);
        }
    }
    /// The same by way of this warp's rows of Q in shared memory, which nobody needs any more: a third of the instructions.
    SAPWOOD_DEVICE void write_over_query() {
        using Tile = typename Traits::QTile;
        constexpr u32 kColumns = Traits::kHeadDimV / 8, kRowsAtOnce = 32 / kColumns;
        static_assert(kColumns <= Traits::kHeadDim / 8 && kColumns * kRowsAtOnce == 32);
        state.reduce_sum();
        const f32 factor[2] = {end_row(0), end_row(1)};
        const u32 first = warp_id() * 16, block = query.stage * Traits::kQueryBytes + first * Tile::kPitch;
        SAPWOOD_UNROLL for (u32 c = 0; c < kColumns; c += 2) {
            u32 x[4];
            SAPWOOD_UNROLL for (u32 j = 0; j < 4; ++j) {
                const f32(&pair)[4] = state.out[c + j / 2];
                x[j] = pack2<Element>(pair[j % 2 * 2] * factor[j % 2], pair[j % 2 * 2 + 1] * factor[j % 2]);
            }
            stmatrix_x4(shared.address + block + Tile::offset(lane % 16, c + lane / 16), x);
        }
        warp_sync();
        const u32 from = lane / kColumns, column = lane % kColumns;
        U32x4 x[16 / kRowsAtOnce];
        SAPWOOD_UNROLL for (u32 i = 0; i < 16 / kRowsAtOnce; ++i) {
            x[i] = load_shared_16(shared.address + block + Tile::offset(from + i * kRowsAtOnce, column));
        }
        u8* to = out_row(first + from) + column * 16;
        SAPWOOD_UNROLL for (u32 i = 0; i < 16 / kRowsAtOnce; ++i) {
            if (is_there(first + from + i * kRowsAtOnce)) store_16(to, x[i].x, x[i].y, x[i].z, x[i].w);
            to += kRowsAtOnce * params.out.token_stride;
        }
        fence_async_proxy();  // the copy engine writes there next
    }
};

}  // namespace sapwood::kernel
