// SPDX-License-Identifier: Apache-2.0
// Products by wgmma: four warps on 64 rows and the 64 keys of a tile, Q and the weights from registers, K and V from shared memory.
// Each warp keeps 16 of the rows, in the registers that mma.sync would use, so that all else is as with WarpProducts. Thin work
// costs what 64 rows cost, which still hides behind its loads; row-heavy work runs at the tensor cores' rate. sm_90a.
#pragma once

#include "attention/decode_rows.h"

namespace sapwood::kernel {

template <class Traits>
struct WarpgroupProducts : DecodeRows<Traits> {
    using Rows = DecodeRows<Traits>;
    using Element = typename Traits::Element;
    using Position = RingPosition<Traits::kStages>;
    using Rows::kSteps;
    static constexpr u32 kKeys = 64;  // a tile, and the n of a product
    static constexpr u32 kPanels = Traits::kHeadDimV / 64;
    static_assert(Traits::kBlockKv == kKeys && Traits::kQueryInRegisters);
    static_assert(Traits::kHeadDim % 64 == 0 && Traits::kHeadDimV % 64 == 0);

    using Rows::Rows;

    /// Weights of one tile are made while the last one's are multiplied with V: the products with the next K are issued first, then
    /// those with V, and only the former are waited for.
    SAPWOOD_DEVICE void attend_item(Position& at, u32 tiles) {
        u32 left = tiles, turn = 0;
        stagger(tiles);
        while (find_tile(at, left, turn, tiles)) {
            u32 stage = at.stage;
            ChunkView all = all_;
            f32 s[8][4];
            u32 p[4][4];
            wgmma_fence();
            multiply_keys(s, stage);
            wgmma_wait<0>();
            settle_scores(s);
            signal();
            for (;;) {
                weigh_tile(s, stage, all, p);
                at.advance();
                // Only as far ahead as the ring reaches while this tile is held.
                if (!find_tile(at, left, turn, kAhead)) break;
                wgmma_fence();
                multiply_keys(s, at.stage);
                multiply_values(p, stage);
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

    /// Two warpgroups that start on the same tile multiply together and then take exponentials together: half of the time the
    /// tensor cores have nothing to do. On long items the second one starts when the first has its first scores. (Not on short
    /// ones: the first could be two items ahead, and the barrier's parity would not tell.)
    SAPWOOD_DEVICE void stagger(u32 tiles) {
        if (kUnits != 2 || this->parts != 1 || tiles < 2 * Traits::kStages) return;
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
            const ChunkView some{chunks[1].tile_rows, 0};
            all_ = {chunks[0].tile_rows, 0};
            if (mine && some.meets(this->first_row, 64)) {
                fence_async_proxy();  // the tile was written by cp.async
                return true;
            }
            this->release(at.stage);
            signal();
        }
        return false;
    }

    SAPWOOD_DEVICE void multiply_keys(f32 (&s)[8][4], u32 stage) {
        const u32 keys = wgmma_panel(this->shared.stage(stage));
        SAPWOOD_UNROLL for (u32 step = 0; step < kSteps; ++step) {
            const u32 at = step / 4 * Traits::KTile::kGroupStride + step % 4 * 32;
            wgmma_64x64x16<Element, false>(s, this->query[step], wgmma_advance(keys, at), step > 0);
        }
        wgmma_commit();
    }
    SAPWOOD_DEVICE void multiply_values(u32 (&p)[4][4], u32 stage) {
        const u32 values = wgmma_panel(this->shared.stage(stage) + Traits::kKTileBytes);
        SAPWOOD_UNROLL for (u32 panel = 0; panel < kPanels; ++panel) {
            SAPWOOD_UNROLL for (u32 c = 0; c < 4; ++c) {
                const u32 at = panel * Traits::VTile::kGroupStride + c * 16 * Traits::VTile::kPitch;
                wgmma_64x64x16<Element, true>(this->state.out64(panel), p[c], wgmma_advance(values, at), true);
            }
        }
        wgmma_commit();
    }

    /// Scores to weights, packed; then the products with V of the tile before are complete.
    SAPWOOD_DEVICE void weigh_tile(f32 (&s)[8][4], u32 stage, ChunkView all, u32 (&p)[4][4]) {
        this->transform(s);
        if (all.begin() > this->first_row || all.end() < min_u32(this->first_row + 64, this->row_end)) {
            const ChunkView chunks[4] = {this->chunk(stage, 0), this->chunk(stage, 1), this->chunk(stage, 2),
                                         this->chunk(stage, 3)};
            this->mask(s, chunks, stage, 0);
        }
        f32 rescale[2];
        const bool raised = this->weigh(s, rescale);
        wgmma_wait<0>();
        settle_out();
        if (before_ != kNone) this->release(before_);
        before_ = kNone;
        if (raised) this->state.rescale_out(rescale[0], rescale[1]);
        SAPWOOD_UNROLL for (u32 c = 0; c < 4; ++c) pack_weights<Element>(p[c], s[c * 2], s[c * 2 + 1]);
    }

    SAPWOOD_DEVICE void settle_scores(f32 (&s)[8][4]) {
        wgmma_settled(s);
        SAPWOOD_UNROLL for (u32 step = 0; step < kSteps; ++step) wgmma_settled(this->query[step]);
    }
    SAPWOOD_DEVICE void settle_out() {
        SAPWOOD_UNROLL for (u32 panel = 0; panel < kPanels; ++panel) wgmma_settled(this->state.out64(panel));
    }
};

}  // namespace sapwood::kernel
