// SPDX-License-Identifier: Apache-2.0
// Products of the packed forward kernel by wgmma: two warpgroups, 64 rows each. While the weights of a tile are made, the products
// of the tile before with V run; and the warpgroups take turns, so that one multiplies while the other takes exponentials. sm_90a.
#pragma once

#include "attention/packed_rows.h"
#include "attention/warpgroup_tiles.h"

namespace sapwood::kernel {

template <class Traits>
struct PackedWarpgroupProducts : PackedRows<Traits> {
    using Rows = PackedRows<Traits>;
    using Element = typename Traits::Element;
    using Rows::kBlocks;
    using typename Rows::Weights;
    static constexpr u32 kKeys = Traits::kBlockKv;
    static_assert(Traits::kWarps == 8 && Traits::kProducers == 4, "two warpgroups that take turns, one that copies");
    static_assert(Traits::kHeadDim % 64 == 0 && Traits::kHeadDimV % 64 == 0 && (kKeys == 64 || kKeys == 128));

    using Rows::Rows;

    SAPWOOD_DEVICE void begin() const { turns_.begin(); }
    SAPWOOD_DEVICE void end() const { turns_.end(); }

    /// This item; then takes the next one.
    SAPWOOD_DEVICE void attend_item() {
        f32 s[kBlocks][4];
        Weights even, odd;  // of tiles
        f32 rescale[2];
        const u32 runs = wait_keys();
        wgmma_fence();
        multiply_keys(s);
        wgmma_wait<0>();
        finish_keys(s, runs);
        this->weigh(s, rescale);  // whatever it raised, there is no output yet
        pack_weights<Element>(even, s);
        for (u32 left = this->item.tiles - 1; left != 0; --left) {
            attend_tile(s, odd, even);
            if (--left == 0) break;
            attend_tile(s, even, odd);
        }
        if (!kWriteOverQuery) this->release_query();
        this->shared.values.wait_full(this->values);
        if (this->item.tiles % 2 == 0) {
            wgmma_fence();
            multiply_values(odd);
        } else {
            wgmma_fence();
            multiply_values(even);
        }
        wgmma_wait<0>();
        settle_out();
        this->release_values();
        if constexpr (kWriteOverQuery) {
            this->write_over_query();
            this->release_query();
        } else {
            this->write();
        }
        this->take_item();
    }

private:
    const u32 unit_ = warp_id() / 4;
    const Turns turns_{1, unit_};
    /// Where the next item's Q has a place of its own, and the result fits.
    static constexpr bool kWriteOverQuery =
        Traits::kQueries == 2 && Traits::kHeadDimV <= Traits::kHeadDim && 256 % Traits::kHeadDimV == 0;

    /// The runs of the tile, looked up before a warpgroup waits for its turn.
    SAPWOOD_DEVICE u32 wait_keys() const {
        this->shared.keys.wait_full(this->keys);
        return this->shared.header(this->keys.stage).runs;
    }
    /// Scores are there: mask, and what they were made from goes back.
    SAPWOOD_DEVICE void finish_keys(f32 (&s)[kBlocks][4], u32 runs) {
        wgmma_settled(s);
        this->finish_scores(s, this->keys.stage, runs);
        this->release_keys();
    }
    /// Scores of a tile become `weights` while those of the tile `before` are multiplied by their values.
    SAPWOOD_DEVICE void attend_tile(f32 (&s)[kBlocks][4], Weights& weights, Weights& before) {
        const u32 runs = wait_keys();
        turns_.wait();
        wgmma_fence();
        multiply_keys(s);
        this->shared.values.wait_full(this->values);
        wgmma_fence();
        multiply_values(before);
        turns_.pass();
        wgmma_wait<1>();
        finish_keys(s, runs);
        bool raised = false;
        f32 rescale[2];
        if (!this->try_weights(weights, s)) {
            raised = this->weigh(s, rescale);
            pack_weights<Element>(weights, s);
        }
        wgmma_wait<0>();
        settle_out();
        // Until now they were read: without this the compiler gives their registers to the new ones.
        SAPWOOD_UNROLL for (u32 c = 0; c < kBlocks / 2; ++c) wgmma_settled(before[c]);
        this->release_values();
        if (raised) this->state.rescale_out(rescale[0], rescale[1]);
    }
    SAPWOOD_DEVICE void multiply_keys(f32 (&s)[kBlocks][4]) {
        kernel::multiply_keys<Element, Traits::kHeadDim, typename Traits::QTile, typename Traits::KTile>(
            s, this->shared.query_block(this->query.stage) + unit_ * 64 * Traits::QTile::kPitch,
            this->shared.key_tile(this->keys.stage));
    }
    SAPWOOD_DEVICE void multiply_values(const Weights& p) {
        kernel::multiply_values<Element, typename Traits::VTile>(this->state.out, p, this->shared.value_tile(this->values.stage));
    }
    SAPWOOD_DEVICE void settle_out() { wgmma_settled(this->state.out); }
};

}  // namespace sapwood::kernel
