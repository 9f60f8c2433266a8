// SPDX-License-Identifier: Apache-2.0
// Products by wgmma: four warps on 64 rows and the 64 keys of a tile, Q and the weights from registers, K and V from shared memory.
// Each warp keeps 16 of the rows, in the registers that mma.sync would use, so that all else is as with WarpProducts. Thin work costs
// what 64 rows cost, which still hides behind its loads; row-heavy work runs at the tensor cores' rate. sm_90a.
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
        while (find_tile(at, left, turn, tiles)) {
            u32 stage = at.stage;
            f32 s[8][4];
            u32 p[4][4];
            wgmma_fence();
            multiply_keys(s, stage);
            wgmma_wait<0>();
            settle_scores(s);
            for (;;) {
                weigh_tile(s, stage, p);
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
    u32 before_ = kNone;  // the stage whose V is still being multiplied

    /// Stands at the next tile that this warpgroup works on, of the next `reach`; tiles go round the warpgroups that share rows, and
    /// those that none of its rows sees are given back at once. False if there is none. The same in all four warps, which multiply
    /// together.
    SAPWOOD_DEVICE bool find_tile(Position& at, u32& left, u32& turn, u32 reach) {
        const u32 first_row = this->row_block / 4 * 64;
        for (; reach > 0 && left > 0; --reach, at.advance()) {
            --left;
            this->shared.ring.wait_full(at);
            const bool mine = turn == this->part;
            if (++turn >= this->parts) turn = 0;
            const ChunkView some{this->shared.chunks(at.stage)[1].tile_rows, 0};
            if (mine && some.meets(first_row, 64)) {
                fence_async_proxy();  // the tile was written by cp.async
                return true;
            }
            this->release(at.stage);
        }
        return false;
    }

    SAPWOOD_DEVICE void multiply_keys(f32 (&s)[8][4], u32 stage) {
        const u64 keys = wgmma_panel(this->shared.stage(stage));
        SAPWOOD_UNROLL for (u32 step = 0; step < kSteps; ++step) {
            const u32 at = step / 4 * Traits::KTile::kGroupStride + step % 4 * 32;
            wgmma_64x64x16<Element, false>(s, this->query[step], wgmma_advance(keys, at), step > 0);
        }
        wgmma_commit();
    }
    SAPWOOD_DEVICE void multiply_values(u32 (&p)[4][4], u32 stage) {
        const u64 values = wgmma_panel(this->shared.stage(stage) + Traits::kKTileBytes);
        SAPWOOD_UNROLL for (u32 panel = 0; panel < kPanels; ++panel) {
            SAPWOOD_UNROLL for (u32 c = 0; c < 4; ++c) {
                const u32 at = panel * Traits::VTile::kGroupStride + c * 16 * Traits::VTile::kPitch;
                wgmma_64x64x16<Element, true>(this->state.out64(panel), p[c], wgmma_advance(values, at), true);
            }
        }
        wgmma_commit();
    }

    /// Scores to weights, packed; then the products with V of the tile before are complete.
    SAPWOOD_DEVICE void weigh_tile(f32 (&s)[8][4], u32 stage, u32 (&p)[4][4]) {
        this->transform(s);
        const u32 first_row = this->row_block / 4 * 64, end_row = min_u32(first_row + 64, this->row_end);
        const ChunkView all{this->shared.chunks(stage)[0].tile_rows, 0};
        if (all.begin() > first_row || all.end() < end_row) {
            const ChunkView chunks[4] = {this->chunk(stage, 0), this->chunk(stage, 1), this->chunk(stage, 2), this->chunk(stage, 3)};
            this->mask(s, chunks);
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
