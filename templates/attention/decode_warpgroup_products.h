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

template <class Traits>
struct WarpgroupProducts : DecodeRows<Traits> {
    using Rows = DecodeRows<Traits>;
    using Chunks = TensorChunks<Traits>;
    using Element = typename Traits::Element;
    using Position = RingPosition<Traits::kStages>;
    using Rows::kSteps;
    static constexpr u32 kBlocks = Traits::kBlockKv / 8;
    static_assert(Traits::kQueryShared ? Traits::kBlockKv == 128 : Traits::kBlockKv == 64 && Traits::kQueryInRegisters);
    static_assert(Traits::kHeadDim % 64 == 0 && Traits::kHeadDimV % 64 == 0);

    using Rows::Rows;

    SAPWOOD_DEVICE void begin() const {
        if constexpr (kTakesTurns) kTurns.begin();
    }
    SAPWOOD_DEVICE void end() const {
        if constexpr (kTakesTurns) kTurns.end();
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
        u32 left = tiles, turn = 0;
        stagger(tiles);
        while (find_tile(at, left, turn, tiles)) {
            u32 stage = at.stage;
            ChunkView all = all_;
            f32 s[kBlocks][4];
            u32 p[kBlocks / 2][4];
            wait_turn();
            wgmma_fence();
            multiply_keys(s, stage);
            pass_turn();
            wgmma_wait<0>();
            settle_scores(s);
            signal();
            for (;;) {
                weigh_tile(s, stage, all, p);
                at.advance();
                // Only as far ahead as the ring reaches while this tile is held.
                if (!find_tile(at, left, turn, kAhead)) break;
                wait_turn();
                wgmma_fence();
                multiply_keys(s, at.stage);
                multiply_values(p, stage);
                pass_turn();
                wgmma_wait<1>();
                settle_scores(s);
                before_ = stage;
                stage = at.stage;
                all = all_;
            }
            wgmma_fence();
            multiply_values(p, stage);
            wgmma_wait<0>();
            settle_out();
            this->release(stage);
        }
    }

private:
    static constexpr u32 kNone = ~0u;
    static constexpr u32 kUnits = Traits::kWarps / 4;
    static constexpr u32 kAhead = kUnits < Traits::kStages ? kUnits : Traits::kStages - 1;
    u32 before_ = kNone;   // the stage whose V is still being multiplied
    ChunkView all_{0, 0};  // rows that see every key of the tile found last
    bool signals_ = false;
    u32 staggered_ = 0;  // items, modulo 2
    static constexpr bool kTakesTurns = Traits::kQueryShared && kUnits == 2;
    static constexpr Turns kTurns{3};            // named barriers 3 and 4
    static constexpr u32 kWarpgroupBarrier = 5;  // and 6

    /// Warpgroups with rows of their own pass every tile, seen or not, so that both have as many turns.
    SAPWOOD_DEVICE void wait_turn() const {
        if (kTakesTurns && this->parts == 1) kTurns.wait();
    }
    SAPWOOD_DEVICE void pass_turn() const {
        if (kTakesTurns && this->parts == 1) kTurns.pass();
    }

    /// Two warpgroups that start on the same tile multiply together and then take exponentials together: half of the time the
    /// tensor cores have nothing to do. On long items the second one starts when the first has its first scores. (Not on short
    /// ones: the first could be two items ahead, and the barrier's parity would not tell.)
    SAPWOOD_DEVICE void stagger(u32 tiles) {
        if (kTakesTurns || kUnits != 2 || this->parts != 1 || tiles < 2 * Traits::kStages) return;
        const u32 barrier = this->shared.address + Traits::kStagger;
        signals_ = this->first_row == 0;
        if (!signals_) mbarrier_wait(barrier, staggered_);
        staggered_ ^= 1;
    }
    SAPWOOD_DEVICE void signal() {
        if (signals_) mbarrier_arrive(this->shared.address + Traits::kStagger);
        signals_ = false;
    }

    /// Stands at the next tile that this warpgroup works on, of the next `reach`; tiles go round the warpgroups that share rows,
    /// and those that none of its rows sees are given back at once. False if there is none. The same in all four warps, which
    /// multiply together.
    SAPWOOD_DEVICE bool find_tile(Position& at, u32& left, u32& turn, u32 reach) {
        for (; reach > 0 && left > 0; --reach, at.advance()) {
            --left;
            this->shared.ring.wait_full(at);
            const bool mine = turn == this->part;
            if (++turn >= this->parts) turn = 0;
            const abi::Chunk* chunks = this->shared.chunks(at.stage);
            const ChunkView some{chunks[1].tile_word, 0};
            all_ = {chunks[0].tile_word, 0};
            if (mine && some.meets(this->first_row, 64)) {
                fence_async_proxy();  // the tile was written by cp.async
                return true;
            }
            wait_turn();
            pass_turn();
            this->release(at.stage);
            signal();
        }
        return false;
    }

    /// The warpgroup's 64 rows to where its products find them.
    SAPWOOD_DEVICE void hold_query(u32 stage) {
        const u32 barrier = kWarpgroupBarrier + warp_id() / 4;
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
                s, this->shared.address + Traits::kQueryHold + warp_id() / 4 * 64 * Traits::QTile::kPitch,
                this->shared.stage(stage));
        } else {
            const auto keys = wgmma_panel(this->shared.stage(stage), Traits::KTile::kEightRows);
            SAPWOOD_UNROLL for (u32 step = 0; step < kSteps; ++step) {
                const u32 at = step / 4 * Traits::KTile::kGroupStride + step % 4 * 32;
                wgmma_64x64x16<Element>(s, this->query[step], wgmma_advance(keys, at), step > 0);
            }
            wgmma_commit();
        }
    }
    SAPWOOD_DEVICE void multiply_values(u32 (&p)[kBlocks / 2][4], u32 stage) {
        kernel::multiply_values<Element, typename Traits::VTile>(this->state.out, p,
                                                                 this->shared.stage(stage) + Traits::kKTileBytes);
    }

    /// Scores to weights, packed; then the products with V of the tile before are complete.
    SAPWOOD_DEVICE void weigh_tile(f32 (&s)[kBlocks][4], u32 stage, ChunkView all, u32 (&p)[kBlocks / 2][4]) {
        this->transform(s);
        if (all.begin() > this->first_row || all.end() < min_u32(this->first_row + 64, this->row_end)) {
            ChunkView chunks[Traits::kChunks];
            u32 index[Traits::kChunks];
            SAPWOOD_UNROLL for (u32 c = 0; c < Traits::kChunks; ++c) chunks[c] = this->chunk(stage, index[c] = c);
            this->mask(s, chunks, stage, index);
        }
        f32 rescale[2];
        const bool raised = this->weigh(s, rescale);
        wgmma_wait<0>();
        settle_out();
        if (before_ != kNone) this->release(before_);
        before_ = kNone;
        if (raised) this->state.rescale_out(rescale[0], rescale[1]);
        SAPWOOD_UNROLL for (u32 c = 0; c < kBlocks / 2; ++c) pack_weights<Element>(p[c], s[c * 2], s[c * 2 + 1]);
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
