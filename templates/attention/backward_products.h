// SPDX-License-Identifier: Apache-2.0
// The compute side of the backward kernel: two warpgroups, 64 keys each. Keys are the rows of the score tiles, so that weights and
// their gradients are, as they are, A fragments of the products that make dV and dK, which stay in registers for the whole item.
// Only dS goes through shared memory, for dQ, of which each warpgroup makes half of the columns. sm_90a.
#pragma once

#include "attention/backward_order.h"
#include "attention/decode_epilogue.h"
#include "attention/weights.h"
#include "isa/warpgroup.h"

namespace sapwood::kernel {

template <class Traits>
struct BackwardProducts {
    using Element = typename Traits::Element;
    static constexpr u32 kBlocks = Traits::kRows / 8;
    static constexpr u32 kPairBarrier = 1;
    static constexpr u32 kSumFloats = Traits::kKeys * (Traits::kHeadDim + Traits::kHeadDimV);
    static constexpr u32 kQColumns = Traits::kHeadDim / 2;  // of dQ, a warpgroup's

    const abi::BackwardParams& params;
    const BackwardShared<Traits>& shared;
    const typename Traits::Score score;
    const u32 lane, warpgroup;
    f32 dk[Traits::kHeadDim / 8][4], dv[Traits::kHeadDimV / 8][4];
    RingPosition<Traits::kStages> at;
    RingPosition<1> sum;
    BackwardItem item{};
    u32 keys = 0;  // shared address of K

    SAPWOOD_DEVICE BackwardProducts(const abi::BackwardParams& p, const BackwardShared<Traits>& s)
        : params(p), shared(s), score(p.scale_log2, p.softcap_log2), lane(lane_id()), warpgroup(warp_id() / 4) {}

    SAPWOOD_DEVICE void run() {
        RingPosition<Traits::kItems> items;
        RingPosition<1> value;
        for (;; items.advance(), value.advance()) {
            shared.items.wait_full(items);
            item = shared.item(items.stage);
            if (item.steps == BackwardItem::kStop) break;
            keys = shared.key_tile(items.stage);
            clear(dk);
            clear(dv);
            shared.values.wait_full(value);
            if (item.steps == 0) release(shared.values.empty(0));
            SAPWOOD_NO_UNROLL for (u32 left = item.steps; left > 0; --left) step(left == 1);
            if constexpr (Traits::kArrays) item = shared.item(items.stage);  // kept by no register over the steps
            const u32 part = Traits::Order::kFixed ? shared.part(items.stage) : 0;
            release(shared.items.empty(items.stage));
            if (item.slot() == abi::KeyBlock::kNoSlot) {
                write(params.dk, dk, params.scale);
                write(params.dv, dv, 1.0f);
            } else if (!Traits::kArrays || item.steps != 0) {
                f32* sums = slot_sums<kSumFloats>(params, item.slot(), item.kv_head);
                if constexpr (Traits::Order::kFixed) wait_for_parts(part);
                add(sums, dk);
                add(sums + Traits::kKeys * Traits::kHeadDim, dv);
                if constexpr (Traits::Order::kFixed) leave_part();
            }
        }
    }

private:
    template <u32 kCount>
    SAPWOOD_DEVICE static void clear(f32 (&d)[kCount][4]) {
        SAPWOOD_UNROLL for (u32 i = 0; i < kCount; ++i) { SAPWOOD_UNROLL for (u32 j = 0; j < 4; ++j) d[i][j] = 0; }
    }
    /// Every lane for itself, as in PackedRows.
    SAPWOOD_DEVICE void release(u32 barrier) const { mbarrier_arrive(barrier); }
    /// This lane's first key within the item; the other is 8 behind.
    SAPWOOD_DEVICE u32 block_key() const { return warp_id() * 16 + lane / 4; }

    SAPWOOD_DEVICE void step(bool last) {
        const u32 stage = at.stage;
        f32 s[kBlocks][4], ds[kBlocks][4], lse[kBlocks][2];
        u32 p[kBlocks / 2][4], e[kBlocks / 2][4];
        shared.queries.wait_full(at);
        // Read ahead of the products: what this thread asks of shared memory behind them waits until the last one has begun.
        const u32 runs = shared.header(stage).runs;
        load_lse(lse, stage);
        wgmma_fence();
        multiply<typename Traits::KTile, typename Traits::QTile, Traits::kHeadDim>(s, keys, shared.query(stage));
        shared.douts.wait_full(at);
        wgmma_fence();
        multiply<typename Traits::VTile, typename Traits::DOutTile, Traits::kHeadDimV>(ds, shared.value_tile(), shared.dout(stage));
        wgmma_wait<1>();
        wgmma_settled(s);
        if constexpr (Traits::Score::kTransforms) cap(s);
        if (runs != 0) {
            mask(s, stage);
            load_lse(lse, stage);  // again, so that the mask has its registers
        }
        if constexpr (!Traits::Score::kTransforms) weigh(s, lse);
        wgmma_wait<0>();
        wgmma_settled(ds);
        if (last) release(shared.values.empty(0));
        differentiate(s, ds, stage);
        pack_weights<Element>(p, s);
        pack_weights<Element>(e, ds);
        store_dscores(e, shared.dscore(stage));
        wgmma_fence();
        accumulate<typename Traits::DOutTile>(dv, p, shared.dout(stage));
        fence_async_proxy();
        named_sync(kPairBarrier, Traits::kComputeWarps * 32);
        f32 dq[kQColumns / 8][4];
        wgmma_fence();
        multiply_dq(dq, shared.dscore(stage));
        wgmma_wait<1>();
        wgmma_settled(dv);
        release(shared.douts.empty(stage));
        wgmma_fence();
        accumulate<typename Traits::QTile>(dk, e, shared.query(stage));
        wgmma_wait<1>();
        wgmma_settled(dq);
        shared.sums(warpgroup).wait_empty(sum);
        // In the order of the threads that hold them: backward_finish puts them right.
        F32x4* to = shared.sum_words(warpgroup) + thread_id() % 128;
        SAPWOOD_UNROLL for (u32 i = 0; i < kQColumns / 8; ++i) to[i * 128] = {dq[i][0], dq[i][1], dq[i][2], dq[i][3]};
        fence_async_proxy();
        release(shared.sums(warpgroup).full(0));
        sum.advance();
        wgmma_wait<0>();
        wgmma_settled(dk);
        release(shared.queries.empty(stage));
        at.advance();
    }

    /// Of soft-capped scores not: they need these registers, and read the logarithms with the slopes.
    SAPWOOD_DEVICE void load_lse(f32 (&lse)[kBlocks][2], u32 stage) const {
        if constexpr (Traits::Score::kTransforms) return;
        SAPWOOD_UNROLL for (u32 i = 0; i < kBlocks; ++i) {
            SAPWOOD_UNROLL for (u32 j = 0; j < 2; ++j) lse[i][j] = shared.lse(stage)[i * 8 + lane % 4 * 2 + j];
        }
    }
    /// d (64 keys x 64 rows) = this warpgroup's rows of `kept`, K or V, times `rows`.
    template <class KeyTile, class RowTile, u32 kDim>
    SAPWOOD_DEVICE void multiply(f32 (&d)[kBlocks][4], u32 kept, u32 rows) const {
        const auto a = wgmma_panel(kept + warpgroup * 64 * KeyTile::kPitch), b = wgmma_panel(rows);
        SAPWOOD_UNROLL for (u32 k = 0; k < kDim; k += 16) {
            wgmma_shared<Element, Traits::kRows>(d, wgmma_advance(a, k / 64 * KeyTile::kGroupStride + k % 64 * 2),
                                                 wgmma_advance(b, k / 64 * RowTile::kGroupStride + k % 64 * 2), k > 0);
        }
        wgmma_commit();
    }
    /// d (64 keys x dim) += a (64 keys x 64 rows) times `rows`.
    template <class RowTile, u32 kCount>
    SAPWOOD_DEVICE static void accumulate(f32 (&d)[kCount][4], u32 (&a)[kBlocks / 2][4], u32 rows) {
        SAPWOOD_UNROLL for (u32 c = 0; c < kBlocks / 2; ++c) {
            wgmma_registers<Element, kCount * 8>(
                d, a[c], wgmma_advance(wgmma_panels(rows, RowTile::kGroupStride), c * 16 * RowTile::kPitch));
        }
        wgmma_commit();
    }
    /// Half of the columns of dQ (64 rows) = dS times K.
    SAPWOOD_DEVICE void multiply_dq(f32 (&d)[kQColumns / 8][4], u32 dscore) const {
        using K = typename Traits::KTile;
        using DS = typename Traits::DScoreTile;
        const u32 column = warpgroup * kQColumns;
        const auto a = wgmma_panel(dscore), b = wgmma_panel(keys + column / 64 * K::kGroupStride + column % 64 * 2);
        SAPWOOD_UNROLL for (u32 k = 0; k < Traits::kKeys; k += 16) {
            wgmma_shared_transposed<Element, kQColumns>(d, wgmma_advance(a, k / 64 * DS::kGroupStride + k % 64 * 2),
                                                        wgmma_advance(b, k * K::kPitch), k > 0);
        }
        wgmma_commit();
    }

    SAPWOOD_DEVICE void cap(f32 (&s)[kBlocks][4]) const {
        SAPWOOD_UNROLL for (u32 i = 0; i < kBlocks; ++i) {
            SAPWOOD_UNROLL for (u32 j = 0; j < 4; ++j) s[i][j] = score.transform(s[i][j]);
        }
    }
    SAPWOOD_DEVICE void mask(f32 (&s)[kBlocks][4], u32 stage) const {
        mask_transposed_tile(
            s, shared.header(stage), params.runs, item.key_begin + static_cast<i32>(block_key()), lane,
            beyond_runs<Traits::kArrays, true>(params.end_k, params.start_q, item.key_begin + static_cast<i32>(item.keys())));
    }
    /// Scores to weights, by the rows' final sums.
    SAPWOOD_DEVICE void weigh(f32 (&s)[kBlocks][4], const f32 (&lse)[kBlocks][2]) const {
        const f32 factor = score.factor();
        SAPWOOD_UNROLL for (u32 i = 0; i < kBlocks; ++i) {
            SAPWOOD_UNROLL for (u32 j = 0; j < 4; ++j) s[i][j] = exp2_approx(fma_f32(s[i][j], factor, -lse[i][j % 2]));
        }
    }
    /// Weights in s; ds from the gradients of the weights to those of the scores, but for the scale.
    SAPWOOD_DEVICE void differentiate(f32 (&s)[kBlocks][4], f32 (&ds)[kBlocks][4], u32 stage) const {
        SAPWOOD_UNROLL for (u32 i = 0; i < kBlocks; ++i) {
            const f32* sums = shared.row_sums(stage) + i * 8 + lane % 4 * 2;
            SAPWOOD_UNROLL for (u32 j = 0; j < 4; ++j) {
                if constexpr (Traits::Score::kTransforms) {
                    const f32 slope = score.slope(s[i][j]);
                    s[i][j] = exp2_approx(fma_f32(s[i][j], score.factor(), -shared.lse(stage)[i * 8 + lane % 4 * 2 + j % 2]));
                    ds[i][j] = s[i][j] * (ds[i][j] - sums[j % 2]) * slope;
                } else {
                    ds[i][j] = s[i][j] * (ds[i][j] - sums[j % 2]);
                }
            }
        }
    }

    /// Turned round: a row for each query row, 64 keys of this warpgroup in one panel.
    SAPWOOD_DEVICE void store_dscores(const u32 (&e)[kBlocks / 2][4], u32 tile) const {
        using DS = typename Traits::DScoreTile;
        SAPWOOD_UNROLL for (u32 c = 0; c < kBlocks / 2; ++c) {
            const u32 row = c * 16 + lane / 16 * 8 + lane % 8, column = warp_id() * 2 + lane / 8 % 2;
            stmatrix_x4_trans(tile + DS::offset(row, column), e[c]);
        }
    }

    SAPWOOD_DEVICE void wait_for_parts(u32 before) const {
        const u32* arrivals = slot_arrivals(params, item.slot(), item.kv_head);
        if (lane == 0)
            while (load_acquire(arrivals) != before) {}
        warp_sync();
    }
    SAPWOOD_DEVICE void leave_part() const {
        named_sync(kPairBarrier, Traits::kComputeWarps * 32);
        if (thread_id() == 0) atomic_add_release(slot_arrivals(params, item.slot(), item.kv_head), 1);
    }

    /// To what other parts of the same block have made. In the order of the threads, like dQ.
    template <u32 kCount>
    SAPWOOD_DEVICE void add(f32* sums, const f32 (&d)[kCount][4]) const {
        SAPWOOD_UNROLL for (u32 i = 0; i < kCount; ++i)
            reduce_add_4(sums + (i * Traits::kComputeWarps * 32 + thread_id()) * 4, d[i][0], d[i][1], d[i][2], d[i][3]);
    }
    template <u32 kCount>
    SAPWOOD_DEVICE void write(const abi::Tensor& tensor, const f32 (&d)[kCount][4], f32 factor) const {
        SAPWOOD_UNROLL for (u32 h = 0; h < 2; ++h) {
            const u32 in_block = block_key() + h * 8;
            const bool mine = in_block < item.keys();
            u8* to = static_cast<u8*>(tensor.data) + (item.key_begin + static_cast<i64>(in_block)) * tensor.token_stride +
                     static_cast<i64>(item.kv_head) * tensor.head_stride + lane % 4 * 16;
            PairColumns::store<Element>(to, mine, d, h, factor);
        }
    }
};

}  // namespace sapwood::kernel
