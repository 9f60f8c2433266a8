// SPDX-License-Identifier: Apache-2.0
// The packed backward kernel by mma.sync, for every SM from 8.0 and every head dim: eight warps on a block of keys. Keys are the
// rows of the score tiles; weights and dS go through shared memory, where the warps of the same keys meet to make dV and dK, which
// stay in registers, and all warps to make dQ. The first meet at barriers of their own, so that a warp takes exponentials while
// another one multiplies.
#pragma once

#include "attention/backward_warp_loader.h"
#include "attention/decode_epilogue.h"

namespace sapwood::kernel {

template <class Traits>
struct BackwardWarpProducts {
    using Element = typename Traits::Element;
    using Weights = typename Traits::WeightTile;
    static constexpr u32 kM = Traits::kWarpKeys / 16, kN = Traits::kWarpRows / 8;  // fragments of a warp's score tile
    static constexpr u32 kKeyColumns = Traits::kHeadDim / Traits::kRowWarps, kValueColumns = Traits::kHeadDimV / Traits::kRowWarps;
    static constexpr u32 kSumRows = Traits::kRows / Traits::kSumRowWarps, kSumColumns = Traits::kHeadDim / Traits::kSumColumnWarps;
    using Scores = f32[kM][kN][4];
    using Shared = BackwardWarpShared<Traits>;

    const abi::BackwardParams& params;
    const BackwardWarpShared<Traits>& shared;
    const BackwardWarpLoader<Traits>& loader;
    const BackwardWarpOrder<Traits> order;
    const typename Traits::Score score;
    const u32 lane, warp;
    f32 dk[kM][kKeyColumns / 8][4], dv[kM][kValueColumns / 8][4];

    SAPWOOD_DEVICE BackwardWarpProducts(const abi::BackwardParams& p, const BackwardWarpShared<Traits>& s,
                                        const BackwardWarpLoader<Traits>& l)
        : params(p), shared(s), loader(l), order{p, s}, score(p.scale_log2, p.softcap_log2), lane(lane_id()), warp(warp_id()) {}

    SAPWOOD_DEVICE void run() {
        u32 step = 0;
        for (u32 ticket = loader.first_ticket();; ticket = shared.item().next) {
            block_sync();  // nobody is at the item before
            if (thread_id() == 0) loader.open_item(ticket, step);
            block_sync();
            const u32 steps = shared.item().steps;
            if (steps == BackwardWarpItem::kStop) break;
            clear(dk);
            clear(dv);
            if (steps > 0) {
                loader.copy_item();
                loader.copy_step(step);
            }
            SAPWOOD_NO_UNROLL for (u32 left = steps; left > 0; --left, ++step) attend(step, left);
            if (steps > 0) order.leave_tile(step - 1);
            write_item();
        }
    }

private:
    template <u32 kCount>
    SAPWOOD_DEVICE static void clear(f32 (&d)[kM][kCount][4]) {
        SAPWOOD_UNROLL for (u32 m = 0; m < kM; ++m) {
            SAPWOOD_UNROLL for (u32 n = 0; n < kCount; ++n) { SAPWOOD_UNROLL for (u32 j = 0; j < 4; ++j) d[m][n][j] = 0; }
        }
    }
    /// Of the block, this warp's first key and row of a score tile; and the number of its columns' share of dK and dV.
    SAPWOOD_DEVICE u32 first_key() const { return warp / Traits::kRowWarps * Traits::kWarpKeys; }
    SAPWOOD_DEVICE u32 row_warp() const { return warp % Traits::kRowWarps; }
    SAPWOOD_DEVICE u32 first_row() const { return row_warp() * Traits::kWarpRows; }

    /// One step; `left` with it. Every barrier is waited for in every step, needed or not: so synccheck can follow it.
    SAPWOOD_DEVICE void attend(u32 step, u32 left) {
        Scores s, ds;
        shared.wait_full(step);
        multiply<typename Traits::KTile, typename Traits::QTile, Traits::kHeadDim>(s, shared.address, shared.query(step));
        if (left < shared.item().steps) order.leave_tile(step - 1);
        if constexpr (Traits::kStages > 1) {
            Shared::wait_all_before(shared.rows_read(), step);  // the next step's rows come where those before this one lie
            if (left > 1) loader.copy_step(step + 1);
        }
        finish_scores(s, step);
        Shared::wait_all_before(shared.dscores_read(), step);  // and so the weights and the header of the step before
        if (left > 2 && thread_id() == 0) loader.next_header(step + 2);
        if (left == 1 && thread_id() == 0) loader.draw_next();
        if constexpr (!Traits::Score::kTransforms) {
            weigh(s, step);
            store(s, Traits::kWeights);
        }
        multiply<typename Traits::VTile, typename Traits::DOutTile, Traits::kHeadDimV>(ds, shared.values(), shared.dout(step));
        differentiate(s, ds, step);
        if constexpr (Traits::Score::kTransforms) store(s, Traits::kWeights);
        store(ds, Traits::kDScores);
        mbarrier_arrive(shared.dscores_written());
        named_sync(1 + warp / Traits::kRowWarps, Traits::kRowWarps * 32);
        accumulate<typename Traits::DOutTile>(dv, shared.address + Traits::kWeights, shared.dout(step));
        accumulate<typename Traits::QTile>(dk, shared.address + Traits::kDScores, shared.query(step));
        mbarrier_arrive(shared.rows_read());
        Shared::wait_all(shared.dscores_written(), step);
        if constexpr (Traits::kStages == 1) {  // copies have the time of dQ
            Shared::wait_all(shared.rows_read(), step);
            if (left > 1) loader.copy_step(step + 1);
        }
        add_query_gradients(step);
    }

    /// d (this warp's keys x its rows) = `keys` times `rows`.
    template <class KeyTile, class RowTile, u32 kDim>
    SAPWOOD_DEVICE void multiply(Scores& d, u32 keys, u32 rows) const {
        clear(d);
        const RowAddresses<KeyTile> a_at(keys, first_key() + lane % 16, lane / 16);
        if constexpr (kN == 1) {  // of eight rows one load brings two steps
            const RowAddresses<RowTile> b_at(rows, first_row() + lane % 8, lane / 8);
            SAPWOOD_UNROLL for (u32 k = 0; k < kDim / 16; k += 2) {
                u32 b[4];
                ldmatrix_x4(b, b_at.at(k, 0));
                SAPWOOD_UNROLL for (u32 m = 0; m < kM; ++m) {
                    SAPWOOD_UNROLL for (u32 i = 0; i < 2; ++i) {
                        u32 a[4];
                        ldmatrix_x4(a, a_at.at(k + i, m * 16));
                        mma_16x8x16<Element>(d[m][0], a, b[i * 2], b[i * 2 + 1]);
                    }
                }
            }
        } else {
            const RowAddresses<RowTile> b_at(rows, first_row() + lane % 8 + lane / 16 * 8, lane / 8 % 2);
            SAPWOOD_UNROLL for (u32 k = 0; k < kDim / 16; ++k) {
                u32 a[kM][4];
                SAPWOOD_UNROLL for (u32 m = 0; m < kM; ++m) ldmatrix_x4(a[m], a_at.at(k, m * 16));
                SAPWOOD_UNROLL for (u32 n = 0; n < kN; n += 2) {
                    u32 b[4];
                    ldmatrix_x4(b, b_at.at(k, n * 8));
                    SAPWOOD_UNROLL for (u32 m = 0; m < kM; ++m) {
                        mma_16x8x16<Element>(d[m][n], a[m], b[0], b[1]);
                        mma_16x8x16<Element>(d[m][n + 1], a[m], b[2], b[3]);
                    }
                }
            }
        }
    }
    /// d (this warp's keys x its columns) += `weights` (keys x rows) times `rows`.
    template <class RowTile, u32 kCount>
    SAPWOOD_DEVICE void accumulate(f32 (&d)[kM][kCount][4], u32 weights, u32 rows) const {
        const RowAddresses<Weights> a_at(weights, first_key() + lane % 16, lane / 16);
        const RowAddresses<RowTile> b_at(rows, lane % 16, lane / 16 + row_warp() * kCount);
        SAPWOOD_UNROLL for (u32 k = 0; k < Traits::kRows / 16; ++k) {
            u32 a[kM][4];
            SAPWOOD_UNROLL for (u32 m = 0; m < kM; ++m) ldmatrix_x4(a[m], a_at.at(k, m * 16));
            SAPWOOD_UNROLL for (u32 n = 0; n < kCount; n += 2) {
                u32 b[4];
                ldmatrix_x4_trans(b, b_at.at(n / 2, k * 16));
                SAPWOOD_UNROLL for (u32 m = 0; m < kM; ++m) {
                    mma_16x8x16<Element>(d[m][n], a[m], b[0], b[1]);
                    mma_16x8x16<Element>(d[m][n + 1], a[m], b[2], b[3]);
                }
            }
        }
    }
    /// dQ of the step, this warp's part of it, to the sums in global memory.
    SAPWOOD_DEVICE void add_query_gradients(u32 step) const {
        constexpr u32 kRowBlocks = kSumRows / 16, kColumnBlocks = kSumColumns / 8;
        const u32 row_block = warp % Traits::kSumRowWarps * kRowBlocks, column_block = warp / Traits::kSumRowWarps * kColumnBlocks;
        f32 d[kRowBlocks][kColumnBlocks][4] = {};
        const RowAddresses<Weights> a_at(shared.address + Traits::kDScores, lane % 8 + lane / 16 * 8, lane / 8 % 2 + row_block * 2);
        const RowAddresses<typename Traits::KTile> b_at(shared.address, lane % 16, lane / 16 + column_block);
        SAPWOOD_UNROLL for (u32 k = 0; k < Traits::kKeys / 16; ++k) {
            u32 a[kRowBlocks][4];
            SAPWOOD_UNROLL for (u32 m = 0; m < kRowBlocks; ++m) ldmatrix_x4_trans(a[m], a_at.at(m, k * 16));
            SAPWOOD_UNROLL for (u32 n = 0; n < kColumnBlocks; n += 2) {
                u32 b[4];
                ldmatrix_x4_trans(b, b_at.at(n / 2, k * 16));
                SAPWOOD_UNROLL for (u32 m = 0; m < kRowBlocks; ++m) {
                    mma_16x8x16<Element>(d[m][n], a[m], b[0], b[1]);
                    mma_16x8x16<Element>(d[m][n + 1], a[m], b[2], b[3]);
                }
            }
        }
        const TileHeader& tile = shared.header(step);
        const u32 row = static_cast<u32>(tile.begin), target = tile.head * params.row_tiles + row / abi::kRowTile;
        const u32 before = shared.before(step);
        // A row tile's sums lie by eight columns, 16 rows.
        f32* sums = params.dq_sums + static_cast<u64>(target) * (abi::kRowTile * Traits::kHeadDim) +
                    column_block * (abi::kRowTile * 8) + (row % abi::kRowTile / 16 + row_block) * 128;
        mbarrier_arrive(shared.dscores_read());
        order.await_tile(target, before);
        SAPWOOD_UNROLL for (u32 m = 0; m < kRowBlocks; ++m) {
            SAPWOOD_UNROLL for (u32 n = 0; n < kColumnBlocks; ++n)
                add_accumulators(sums + n * (abi::kRowTile * 8) + m * 128, d[m][n]);
        }
    }

    /// Soft-cap, where there is one, then the mask, where the tile needs one.
    SAPWOOD_DEVICE void finish_scores(Scores& s, u32 step) const {
        if constexpr (Traits::Score::kTransforms) {
            SAPWOOD_UNROLL for (u32 m = 0; m < kM; ++m) {
                SAPWOOD_UNROLL for (u32 n = 0; n < kN; ++n) {
                    SAPWOOD_UNROLL for (u32 j = 0; j < 4; ++j) s[m][n][j] = score.transform(s[m][n][j]);
                }
            }
        }
        const TileHeader& tile = shared.header(step);
        if (tile.runs == 0) return;
        const BackwardWarpItem& item = shared.item();
        const i32 row = tile.begin + static_cast<i32>(first_row());
        const i32 key = item.key_begin + static_cast<i32>(first_key() + lane / 4);
        const auto beyond =
            beyond_runs<Traits::kArrays, true>(params.end_k, params.start_q, item.key_begin + static_cast<i32>(item.keys));
        SAPWOOD_UNROLL for (i32 m = 0; m < static_cast<i32>(kM); ++m) {
            u32 seen[2] = {0, 0};
            each_run(tile, params.runs, [&](const abi::KeyRun& run) {
                SAPWOOD_UNROLL for (i32 h = 0; h < 2; ++h) seen[h] |= seeing_columns(run, key + (m * 16 + h * 8), row, lane);
            });
            beyond.template narrow<kN>(seen, key + m * 16, row, lane);
            mask_columns(s[m], seen);
        }
    }
    /// Scores to weights, by the rows' final sums.
    SAPWOOD_DEVICE void weigh(Scores& s, u32 step) const {
        const f32 factor = score.factor();
        SAPWOOD_UNROLL for (u32 n = 0; n < kN; ++n) {
            const f32* lse = shared.lse(step) + first_row() + n * 8 + lane % 4 * 2;
            const f32 pair[2] = {lse[0], lse[1]};
            SAPWOOD_UNROLL for (u32 m = 0; m < kM; ++m) {
                SAPWOOD_UNROLL for (u32 j = 0; j < 4; ++j) s[m][n][j] = exp2_approx(fma_f32(s[m][n][j], factor, -pair[j % 2]));
            }
        }
    }
    /// ds from the gradients of the weights to those of the scores, but for the scale. Weights are in s or, where their scores are
    /// needed for the slope, come there.
    SAPWOOD_DEVICE void differentiate(Scores& s, Scores& ds, u32 step) const {
        SAPWOOD_UNROLL for (u32 n = 0; n < kN; ++n) {
            const u32 at = first_row() + n * 8 + lane % 4 * 2;
            const f32 sums[2] = {shared.row_sums(step)[at], shared.row_sums(step)[at + 1]};
            if constexpr (Traits::Score::kTransforms) {
                const f32 lse[2] = {shared.lse(step)[at], shared.lse(step)[at + 1]};
                SAPWOOD_UNROLL for (u32 m = 0; m < kM; ++m) {
                    SAPWOOD_UNROLL for (u32 j = 0; j < 4; ++j) {
                        const f32 slope = score.slope(s[m][n][j]);
                        s[m][n][j] = exp2_approx(fma_f32(s[m][n][j], score.factor(), -lse[j % 2]));
                        ds[m][n][j] = s[m][n][j] * (ds[m][n][j] - sums[j % 2]) * slope;
                    }
                }
            } else {
                SAPWOOD_UNROLL for (u32 m = 0; m < kM; ++m) {
                    SAPWOOD_UNROLL for (u32 j = 0; j < 4; ++j) ds[m][n][j] = s[m][n][j] * (ds[m][n][j] - sums[j % 2]);
                }
            }
        }
    }
    /// Rounded, to this warp's part of a tile with a row for each key.
    SAPWOOD_DEVICE void store(const Scores& s, u32 tile) const {  // four lanes make 16 bytes, eight keys lie in different banks
        SAPWOOD_UNROLL for (u32 n = 0; n < kN; ++n) {
            u8* to = shared.base + tile + Weights::offset(first_key() + lane / 4, row_warp() * kN + n) + lane % 4 * 4;
            SAPWOOD_UNROLL for (u32 m = 0; m < kM; ++m) {
                SAPWOOD_UNROLL for (u32 h = 0; h < 2; ++h) {
                    *reinterpret_cast<u32*>(to + (m * 16 + h * 8) * Weights::kPitch) =
                        pack2<Element>(s[m][n][h * 2], s[m][n][h * 2 + 1]);
                }
            }
        }
    }

    SAPWOOD_DEVICE void write_item() const {
        const BackwardWarpItem& item = shared.item();
        if (item.slot == abi::KeyBlock::kNoSlot) {
            write(params.dk, dk, params.scale);
            write(params.dv, dv, 1.0f);
        } else if (!Traits::kArrays || item.steps != 0) {  // of which arrays have left nothing adds nothing
            constexpr u32 kSums = Traits::kKeys * (Traits::kHeadDim + Traits::kHeadDimV);
            f32* sums = slot_sums<kSums>(params, item.slot, item.kv_head);
            order.await_part();
            add(sums, dk);
            add(sums + Traits::kKeys * Traits::kHeadDim, dv);
            order.leave_part();
        }
    }
    /// To what other parts of the same block have made: by eight columns, 16 keys, like dQ.
    template <u32 kCount>
    SAPWOOD_DEVICE void add(f32* sums, const f32 (&d)[kM][kCount][4]) const {
        SAPWOOD_UNROLL for (u32 m = 0; m < kM; ++m) {
            SAPWOOD_UNROLL for (u32 n = 0; n < kCount; ++n)
                add_accumulators(sums + ((row_warp() * kCount + n) * (Traits::kKeys / 16) + first_key() / 16 + m) * 128, d[m][n]);
        }
    }
    template <u32 kCount>
    SAPWOOD_DEVICE void write(const abi::Tensor& tensor, const f32 (&d)[kM][kCount][4], f32 factor) const {
        constexpr u32 kFours = kCount / 4 * 4;  // blocks that go out by fours, whole sectors
        const BackwardWarpItem& item = shared.item();
        SAPWOOD_UNROLL for (u32 m = 0; m < kM; ++m) {
            SAPWOOD_UNROLL for (u32 h = 0; h < 2; ++h) {
                const u32 in_block = first_key() + m * 16 + h * 8 + lane / 4;
                const bool mine = in_block < item.keys;
                u8* to = static_cast<u8*>(tensor.data) + (item.key_begin + static_cast<i64>(in_block)) * tensor.token_stride +
                         static_cast<i64>(item.kv_head) * tensor.head_stride + row_warp() * (kCount * 16);
                if constexpr (kFours > 0) {
                    PairColumns::store<Element>(to + lane % 4 * 16, mine, reinterpret_cast<const f32(&)[kFours][4]>(d[m]), h,
                                                factor);
                }
                SAPWOOD_UNROLL for (u32 n = kFours; n < kCount; ++n) {
                    if (mine)
                        store_4(to + n * 16 + lane % 4 * 4, pack2<Element>(d[m][n][h * 2] * factor, d[m][n][h * 2 + 1] * factor));
                }
            }
        }
    }
};

}  // namespace sapwood::kernel
