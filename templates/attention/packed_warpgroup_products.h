// SPDX-License-Identifier: Apache-2.0
// Products of the packed forward kernel by wgmma: two warpgroups, 64 rows each. While the weights of a tile are made, the products
// of the tile before with V run; and the warpgroups take turns, so that one multiplies while the other takes exponentials. sm_90a.
#pragma once

#include "attention/packed_rows.h"

namespace sapwood::kernel {

template <class Traits>
struct PackedWarpgroupProducts : PackedRows<Traits> {
    using Rows = PackedRows<Traits>;
    using Element = typename Traits::Element;
    using Rows::kBlocks;
    using Rows::kSteps;
    static constexpr u32 kKeys = Traits::kBlockKv;
    static_assert(Traits::kWarps == 8 && Traits::kProducers == 4, "two warpgroups that take turns, one that copies");
    static_assert(Traits::kHeadDim % 64 == 0 && Traits::kHeadDimV % 64 == 0 && (kKeys == 64 || kKeys == 128));

    using Rows::Rows;

    /// The first warpgroup has the first turn …
    SAPWOOD_DEVICE void begin() const {
        if (own_turn() == kFirstTurn + 1) turn_pass(kFirstTurn);
    }
    /// … and, both having had as many, the second one is owed the last pass.
    SAPWOOD_DEVICE void end() const {
        if (own_turn() == kFirstTurn) turn_wait(kFirstTurn);
    }

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
            turn_wait(own_turn());
            wgmma_fence();
            multiply_keys(s);
            this->shared.values.wait_full(this->values);
            wgmma_fence();
            multiply_values(p);
            turn_pass(other_turn());
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
    static constexpr u32 kFirstTurn = 1;  // named barriers
    SAPWOOD_DEVICE u32 warpgroup() const { return warp_id() / 4; }
    SAPWOOD_DEVICE u32 own_turn() const { return kFirstTurn + warpgroup(); }
    SAPWOOD_DEVICE u32 other_turn() const { return kFirstTurn + (warpgroup() ^ 1); }

    SAPWOOD_DEVICE void multiply_keys(f32 (&s)[kBlocks][4]) {
        const u32 rows = wgmma_panel(this->shared.address + warpgroup() * 64 * Traits::QTile::kPitch);
        const u32 columns = wgmma_panel(this->shared.key_tile(this->keys.stage));
        SAPWOOD_UNROLL for (u32 step = 0; step < kSteps; ++step) {
            const u32 panel = step / 4, inside = step % 4 * 32;
            wgmma_shared<Element, kKeys>(s, wgmma_advance(rows, panel * Traits::QTile::kGroupStride + inside),
                                         wgmma_advance(columns, panel * Traits::KTile::kGroupStride + inside), step > 0);
        }
        wgmma_commit();
    }
    SAPWOOD_DEVICE void multiply_values(u32 (&p)[kBlocks / 2][4]) {
        const u32 tile = this->shared.value_tile(this->values.stage);
        SAPWOOD_UNROLL for (u32 c = 0; c < kBlocks / 2; ++c) {
            SAPWOOD_UNROLL for (u32 d = 0; d + 128 <= Traits::kHeadDimV; d += 128) {
                wgmma_registers<Element, 128>(reinterpret_cast<f32(&)[16][4]>(this->state.out[d / 8]), p[c],
                                              value_rows(tile, d, c));
            }
            if constexpr (Traits::kHeadDimV % 128 != 0) {
                constexpr u32 d = Traits::kHeadDimV / 128 * 128;
                wgmma_registers<Element, 64>(reinterpret_cast<f32(&)[8][4]>(this->state.out[d / 8]), p[c], value_rows(tile, d, c));
            }
        }
        wgmma_commit();
    }
    /// 16 keys from 16 `c` on, columns from `d` on.
    SAPWOOD_DEVICE static u32 value_rows(u32 tile, u32 d, u32 c) {
        return wgmma_advance(wgmma_panels(tile, Traits::VTile::kGroupStride),
                             d / 64 * Traits::VTile::kGroupStride + c * 16 * Traits::VTile::kPitch);
    }
    SAPWOOD_DEVICE void settle_out() { wgmma_settled(this->state.out); }
};

}  // namespace sapwood::kernel
