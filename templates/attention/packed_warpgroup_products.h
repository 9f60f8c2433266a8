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
    static constexpr u32 kKeys = Traits::kBlockKv;
    static_assert(Traits::kWarps == 8 && Traits::kProducers == 4, "two warpgroups that take turns, one that copies");
    static_assert(Traits::kHeadDim % 64 == 0 && Traits::kHeadDimV % 64 == 0 && (kKeys == 64 || kKeys == 128));

    using Rows::Rows;

    SAPWOOD_DEVICE void begin() const { kTurns.begin(); }
    SAPWOOD_DEVICE void end() const { kTurns.end(); }

    SAPWOOD_DEVICE void attend_item() {
        f32 s[kBlocks][4];
        u32 p[kBlocks / 2][4];
        f32 rescale[2];
        this->shared.keys.wait_full(this->keys);
        wgmma_fence();
        multiply_keys(s);
        wgmma_wait<0>();
        wgmma_settled(s);
        this->finish_scores(s, this->keys.stage);
        this->release_keys();
        this->weigh(s, rescale);  // whatever it raised, there is no output yet
        Rows::pack(p, s);
        SAPWOOD_NO_UNROLL for (u32 tile = 1; tile < this->item.tiles; ++tile) {
            this->shared.keys.wait_full(this->keys);
            kTurns.wait();
            wgmma_fence();
            multiply_keys(s);
            this->shared.values.wait_full(this->values);
            wgmma_fence();
            multiply_values(p);
            kTurns.pass();
            wgmma_wait<1>();
            wgmma_settled(s);
            this->finish_scores(s, this->keys.stage);
            this->release_keys();
            const bool raised = this->weigh(s, rescale);
            wgmma_wait<0>();
            settle_out();
            this->release_values();
            Rows::pack(p, s);
            if (raised) this->state.rescale_out(rescale[0], rescale[1]);
        }
        this->release(this->shared.query.empty(0));
        this->shared.values.wait_full(this->values);
        wgmma_fence();
        multiply_values(p);
        wgmma_wait<0>();
        settle_out();
        this->release_values();
    }

private:
    static constexpr Turns kTurns{1};

    SAPWOOD_DEVICE void multiply_keys(f32 (&s)[kBlocks][4]) {
        kernel::multiply_keys<Element, Traits::kHeadDim, typename Traits::QTile, typename Traits::KTile>(
            s, this->shared.address + warp_id() / 4 * 64 * Traits::QTile::kPitch, this->shared.key_tile(this->keys.stage));
    }
    SAPWOOD_DEVICE void multiply_values(u32 (&p)[kBlocks / 2][4]) {
        kernel::multiply_values<Element, typename Traits::VTile>(this->state.out, p, this->shared.value_tile(this->values.stage));
    }
    SAPWOOD_DEVICE void settle_out() { wgmma_settled(this->state.out); }
};

}  // namespace sapwood::kernel
