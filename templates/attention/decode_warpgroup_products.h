// SPDX-License-Identifier: Apache-2.0
// Products by wgmma: four warps on 64 rows and the keys of a tile, the weights from registers, K and V from shared memory. Each
// warp keeps 16 of the rows, in the registers that mma.sync would use, so that all else is as with WarpProducts. Tiles of 64 keys,
// with Q in registers, suit short items and thin work, which costs what 64 rows cost and still hides behind its loads; tiles of
// 128, with Q in shared memory and the warpgroups in turns, run row-heavy work at the tensor cores' rate. sm_90a.
#pragma once

#include "attention/decode_rows.h"
#include "attention/decode_tensor_chunks.h"
#include "attention/warpgroup_tiles.h"

namespace sapwood::kernel {

/// Of e4m3 K and V: stored by the copy warps themselves (decode_widening.h).
struct WidenedChunks : NoChunks {
    SAPWOOD_DEVICE static void stored() { fence_async_proxy(); }
};

template <class Traits>
struct WarpgroupProducts : DecodeRows<Traits> {
    using Rows = DecodeRows<Traits>;
    using Chunks = typename Select<Traits::kWidens, WidenedChunks, TensorChunks<Traits>>::Type;
    using Element = typename Traits::Element;
    using Weight = typename Traits::KvElement::Weight;  // and V in shared memory
    using Position = RingPosition<Traits::kStages>;
    using Rows::kSteps;
    static constexpr u32 kBlocks = Traits::kBlockKv / 8;
    using Weights = u32[kBlocks / 2][4];  // A fragments of the products with V
    static_assert(Traits::kQueryShared ? Traits::kBlockKv == 128 : Traits::kBlockKv == 64 && Traits::kQueryInRegisters);
    static_assert(Traits::kHeadDim % 64 == 0 && Traits::kHeadDimV % 64 == 0);

    using Rows::Rows;

    SAPWOOD_DEVICE void begin() const {
        if constexpr (kTakesTurns) turns_.begin();
    }
    SAPWOOD_DEVICE void end() const {
        if constexpr (kTakesTurns) turns_.end();
    }

    /// Orders this thread's accesses to a stage before the copy engine's.
    SAPWOOD_DEVICE void before_copies() const { fence_async_proxy(); }

    SAPWOOD_DEVICE void take_query(u32 stage) {
        if constexpr (Traits::kQueryShared) {
            hold_query(stage);
        } else {
            Rows::take_query(stage);
        }
    }

    /// Weights of one tile are made while the last one's are multiplied with V: the products with the next K are issued first, then
    /// those with V, and only the former are waited for.
    SAPWOOD_DEVICE void attend_item(Position& at, u32 tiles) {
        if constexpr (kWeightsInTurns) {
            attend_in_turns(at, tiles);
        } else {
            attend(at, tiles);
        }
    }

private:
    static constexpr u32 kNone = ~0u;
    static constexpr u32 kUnits = Traits::kWarps / 4;
    static constexpr u32 kAhead = kUnits < Traits::kStages ? kUnits : Traits::kStages - 1;
    const u32 unit_ = warp_id() / 4;
    bool whole_ = false;  // all rows see every key of the tile found last
    Position values_at_;
    bool signals_ = false;
    u32 staggered_ = 0;  // items, modulo 2
    // The weights of the next tile beside those that are being multiplied, made without a look at the scores' maxima first: 2 to 7
    // % for the long items of drafts, but three times the code, which the short items of forests pay for (16/1 1 to 5 %).
    static constexpr bool kWeightsInTurns = Traits::kMask || Traits::kQueryShared;
    static constexpr bool kTakesTurns = Traits::kQueryShared && kUnits == 2;
    const Turns turns_{3, unit_};                // named barriers 3 and 4
    static constexpr u32 kWarpgroupBarrier = 5;  // and 6

    /// Warpgroups with rows of their own pass every tile, seen or not, so that both have as many turns.
    SAPWOOD_DEVICE void wait_turn() const {
        if (kTakesTurns && this->parts == 1) turns_.wait();
    }
    SAPWOOD_DEVICE void pass_turn() const {
        if (kTakesTurns && this->parts == 1) turns_.pass();
    }

    /// Two warpgroups that start on the same tile multiply together and then take exponentials together: half of the time the
    /// tensor cores have nothing to do. So the second one starts when the first has its first scores. (Not on items that the
    /// ring holds with their successor's first tile: the first could be two items ahead, and the barrier's parity would not tell.)
    SAPWOOD_DEVICE void stagger(u32 tiles) {
        if (kTakesTurns || kUnits != 2 || this->parts != 1 || tiles < Traits::kStages) return;
        const u32 barrier = this->shared.address + Traits::kStagger;
        signals_ = this->row_block < 4;
        if (!signals_) mbarrier_wait(barrier, staggered_);
        staggered_ ^= 1;
    }
    SAPWOOD_DEVICE void signal() {
        if (signals_) mbarrier_arrive(this->shared.address + Traits::kStagger);
        signals_ = false;
    }

    /// Stands at the next tile that this warpgroup works on, of the next `reach`; the others are given back at once. False if there
    /// is none, or if the values of the tile before are still to be given back (`holds`) and those of another's would come behind
    /// them. The same in all four warps, which multiply together.
    SAPWOOD_DEVICE bool find_tile(Position& at, u32& left, u32 reach, bool holds) {
        for (; reach > 0 && left > 0; --reach, at.advance()) {
            this->shared.ring.wait_full(at);
            const u32 word = this->shared.chunks(at.stage)->tile_word >> unit_;
            const bool own = (word & 1) != 0;
            whole_ = (word & 1u << abi::kWholeShift) != 0;
            if (Traits::kValuesApart && holds && !own) return false;
            --left;
            if (own) {
                fence_async_proxy();  // the tile was written by cp.async
                return true;
            }
            wait_turn();
            pass_turn();
            if constexpr (Traits::kValuesApart) {
                this->release(at.stage);
                wait_values();  // else this warpgroup could give the stage back twice before the other has once
            }
            release_values(at.stage);
            signal();
        }
        return false;
    }

    /// The warpgroup's 64 rows to where its products find them.
    SAPWOOD_DEVICE void hold_query(u32 stage) {
        const u32 barrier = kWarpgroupBarrier + unit_;
        const u8* from = this->shared.base + stage * Traits::kStageBytes + this->row_block * 16 * Traits::QTile::kPitch;
        u8* to = this->shared.base + Traits::kQueryHold + warp_id() * 16 * Traits::QTile::kPitch;
        named_sync(barrier, 128);  // all four warps have waited for the products with the rows before
        SAPWOOD_UNROLL for (u32 panel = 0; panel < Traits::kHeadDim / 64; ++panel) {
            SAPWOOD_UNROLL for (u32 i = 0; i < 16 * Traits::QTile::kPitch; i += 512) {
                const u32 at = panel * Traits::QTile::kGroupStride + i + this->lane * 16;
                *reinterpret_cast<U32x4*>(to + at) = *reinterpret_cast<const U32x4*>(from + at);
            }
        }
        fence_async_proxy();
        named_sync(barrier, 128);
    }

    SAPWOOD_DEVICE void multiply_keys(f32 (&s)[kBlocks][4], u32 stage) {
        if constexpr (Traits::kQueryShared) {
            kernel::multiply_keys<Element, Traits::kHeadDim, typename Traits::QTile, typename Traits::KTile>(
                s, this->shared.address + Traits::kQueryHold + unit_ * 64 * Traits::QTile::kPitch, this->shared.stage(stage));
        } else {
            const auto keys = wgmma_panel(this->shared.stage(stage), Traits::KTile::kEightRows);
            SAPWOOD_UNROLL for (u32 step = 0; step < kSteps; ++step) {
                const u32 at = step / 4 * Traits::KTile::kGroupStride + step % 4 * 32;
                wgmma_64x64x16<Element>(s, this->query[step], wgmma_advance(keys, at), step > 0);
            }
            wgmma_commit();
        }
    }
    SAPWOOD_DEVICE void multiply_values(const Weights& p, u32 stage) {
        kernel::multiply_values<Weight, typename Traits::VTile>(
            this->state.out, p, this->shared.value_tile(Traits::kValuesApart ? values_at_.stage : stage));
    }
    SAPWOOD_DEVICE void wait_values() const {
        if constexpr (Traits::kValuesApart) {
            this->shared.values.wait_full(values_at_);
            fence_async_proxy();
        }
    }
    /// And the keys of `stage`, where both go back together.
    SAPWOOD_DEVICE void release_values(u32 stage) {
        if constexpr (Traits::kValuesApart) {
            mbarrier_arrive(this->shared.values.empty(values_at_.stage));
            values_at_.advance();
        } else {
            this->release(stage);
        }
    }

    /// One set of weights, one piece of code for all tiles.
    SAPWOOD_DEVICE void attend(Position& at, u32 tiles) {
        u32 left = tiles;
        stagger(tiles);
        while (find_tile(at, left, tiles, false)) {
            u32 stage = at.stage;
            bool whole = whole_;
            u32 before = kNone;  // the stage whose V is still being multiplied
            f32 s[kBlocks][4];
            Weights p;
            multiply_first(s, stage);
            for (;;) {
                mask_scores(s, stage, whole);
                f32 rescale[2];
                const bool raised = this->weigh(s, rescale);
                wgmma_wait<0>();
                settle_out();
                if (before != kNone) this->release(before);
                if (raised) this->state.rescale_out(rescale[0], rescale[1]);
                pack_weights<Weight>(p, s);
                at.advance();
                // Only as far ahead as the ring reaches while this tile is held.
                if (!find_tile(at, left, kAhead, true)) break;
                multiply_both(s, at.stage, p, stage);
                before = stage;
                stage = at.stage;
                whole = whole_;
            }
            multiply_last(p, stage);
            finish_last(stage);
        }
    }

    SAPWOOD_DEVICE void attend_in_turns(Position& at, u32 tiles) {
        u32 left = tiles;
        f32 s[kBlocks][4];
        Weights even, odd;  // of tiles
        stagger(tiles);
        while (find_tile(at, left, tiles, false)) {
            u32 stage = at.stage;
            multiply_first(s, stage);
            finish_scores(s, at);
            f32 rescale[2];
            if (this->weigh(s, rescale)) this->state.rescale_out(rescale[0], rescale[1]);
            pack_weights<Weight>(even, s);
            bool last_odd = false;
            while (find_tile(at, left, kAhead, true)) {
                attend_tile(s, odd, even, stage, at);
                last_odd = !find_tile(at, left, kAhead, true);
                if (last_odd) break;
                attend_tile(s, even, odd, stage, at);
            }
            wait_values();
            if (last_odd) {
                multiply_last(odd, stage);
            } else {
                multiply_last(even, stage);
            }
            finish_last(stage);
        }
    }
    /// Scores of the tile at `at` become `weights` while the weights `before`, of the tile in `stage`, are multiplied by its
    /// values. Those go back, and `at` moves on.
    SAPWOOD_DEVICE void attend_tile(f32 (&s)[kBlocks][4], Weights& weights, Weights& before, u32& stage, Position& at) {
        const u32 own = at.stage;
        multiply_both(s, own, before, stage);
        finish_scores(s, at);
        f32 rescale[2];
        const bool raised =
            !try_weights<Weight>(this->state, weights, s, this->score.factor()) && weigh_and_pack(weights, s, rescale);
        wgmma_wait<0>();
        settle_out();
        // Until now they were read: without this the compiler gives their registers to the new ones.
        SAPWOOD_UNROLL for (u32 c = 0; c < kBlocks / 2; ++c) wgmma_settled(before[c]);
        release_values(stage);
        if (raised) this->state.rescale_out(rescale[0], rescale[1]);
        stage = own;
    }

    SAPWOOD_DEVICE void multiply_first(f32 (&s)[kBlocks][4], u32 stage) {
        wait_turn();
        wgmma_fence();
        multiply_keys(s, stage);
        pass_turn();
        wgmma_wait<0>();
        settle_scores(s);
        signal();
    }
    /// Scores of the tile in `stage`, and the weights of the one before by its values: only the former are waited for.
    SAPWOOD_DEVICE void multiply_both(f32 (&s)[kBlocks][4], u32 stage, Weights& weights, u32 values_stage) {
        wait_turn();
        wgmma_fence();
        multiply_keys(s, stage);
        if constexpr (Traits::kValuesApart) {
            wait_values();
            wgmma_fence();
        }
        multiply_values(weights, values_stage);
        pass_turn();
        wgmma_wait<1>();
        settle_scores(s);
    }
    SAPWOOD_DEVICE void multiply_last(Weights& weights, u32 stage) {
        wgmma_fence();
        multiply_values(weights, stage);
    }
    SAPWOOD_DEVICE void finish_last(u32 stage) {
        wgmma_wait<0>();
        settle_out();
        release_values(stage);
    }

    SAPWOOD_DEVICE bool weigh_and_pack(Weights& p, f32 (&s)[kBlocks][4], f32 (&rescale)[2]) {
        const bool raised = this->weigh(s, rescale);
        pack_weights<Weight>(p, s);
        return raised;
    }

    /// Soft-cap, and the mask unless all rows see every key of the tile.
    SAPWOOD_DEVICE void mask_scores(f32 (&s)[kBlocks][4], u32 stage, bool whole) {
        this->transform(s);
        if (!whole) {
            ChunkView chunks[Traits::kChunks];
            u32 index[Traits::kChunks];
            SAPWOOD_UNROLL for (u32 c = 0; c < Traits::kChunks; ++c) chunks[c] = this->chunk(stage, index[c] = c);
            this->mask_tile(s, chunks, stage, index);
        }
    }
    /// The same of the tile at `at`, whose keys then go back where values come apart; `at` moves on.
    SAPWOOD_DEVICE void finish_scores(f32 (&s)[kBlocks][4], Position& at) {
        mask_scores(s, at.stage, whole_);
        if constexpr (Traits::kValuesApart) this->release(at.stage);
        at.advance();
    }

    SAPWOOD_DEVICE void settle_scores(f32 (&s)[kBlocks][4]) {
        wgmma_settled(s);
        if constexpr (!Traits::kQueryShared) {
            SAPWOOD_UNROLL for (u32 step = 0; step < kSteps; ++step) wgmma_settled(this->query[step]);
        }
    }
    SAPWOOD_DEVICE void settle_out() { wgmma_settled(this->state.out); }
};

}  // namespace sapwood::kernel
