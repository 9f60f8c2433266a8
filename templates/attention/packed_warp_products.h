// SPDX-License-Identifier: Apache-2.0
// Products of the packed forward kernel by mma.sync: each warp by itself on 16 rows. For every SM from 8.0 and every head dim.
#pragma once

#include "attention/packed_rows.h"

namespace sapwood::kernel {

template <class Traits>
struct PackedWarpProducts : PackedRows<Traits> {
    using Rows = PackedRows<Traits>;
    using Element = typename Traits::Element;
    using Rows::kBlocks;
    using Rows::kSteps;
    using Rows::lane;
    static constexpr bool kQueryInRegisters = Traits::kHeadDim <= 128;
    u32 query[kQueryInRegisters ? kSteps : 1][4];

    using Rows::Rows;

    SAPWOOD_DEVICE void begin() const {}
    SAPWOOD_DEVICE void end() const {}

    /// This item; then takes the next one.
    SAPWOOD_DEVICE void attend_item() {
        if constexpr (kQueryInRegisters) {
            SAPWOOD_UNROLL for (u32 step = 0; step < kSteps; ++step) ldmatrix_x4(query[step], query_address(step));
            this->release_query();
        }
        for (u32 tile = 0; tile < this->item.tiles; ++tile) {
            f32 s[kBlocks][4] = {};
            this->shared.keys.wait_full(this->keys);
            multiply_keys(s);
            this->finish_scores(s, this->keys.stage, this->shared.header(this->keys.stage).runs);
            this->release_keys();
            typename Rows::Weights p;
            if (tile == 0 || !this->try_weights(p, s)) {
                f32 rescale[2];
                if (this->weigh(s, rescale)) this->state.rescale_out(rescale[0], rescale[1]);
                pack_weights<Element>(p, s);
            }
            this->shared.values.wait_full(this->values);
            multiply_values(p);
            this->release_values();
        }
        if constexpr (!kQueryInRegisters) this->release_query();
        this->write();
        this->take_item();
    }

private:
    SAPWOOD_DEVICE u32 query_address(u32 step) const {
        return this->shared.address + Traits::QTile::offset(warp_id() * 16 + lane % 16, step * 2 + lane / 16);
    }

    /// ldmatrix lane addresses: K takes row l%8 + 8*(l/16), column (l/8)%2; V takes row l%16, column l/16.
    SAPWOOD_DEVICE void multiply_keys(f32 (&s)[kBlocks][4]) {
        constexpr u32 kUnrolled = kQueryInRegisters ? kSteps : 4;  // all fragments of a wide head at once would spill
        SAPWOOD_NO_UNROLL for (u32 first = 0; first < kSteps; first += kUnrolled) {
            const RowAddresses<typename Traits::KTile> rows(this->shared.key_tile(this->keys.stage) + first * 32,
                                                            lane % 8 + lane / 16 * 8, lane / 8 % 2);
            SAPWOOD_UNROLL for (u32 i = 0; i < kUnrolled; ++i) {
                u32 held[4];
                if constexpr (!kQueryInRegisters) ldmatrix_x4(held, query_address(first + i));
                const u32(&a)[4] = kQueryInRegisters ? query[kQueryInRegisters ? i : 0] : held;
                SAPWOOD_UNROLL for (u32 c = 0; c < kBlocks / 2; ++c) {
                    u32 b[4];
                    ldmatrix_x4(b, rows.at(i, c * 16));
                    mma_16x8x16<Element>(s[c * 2], a, b[0], b[1]);
                    mma_16x8x16<Element>(s[c * 2 + 1], a, b[2], b[3]);
                }
            }
        }
    }
    SAPWOOD_DEVICE void multiply_values(const u32 (&p)[kBlocks / 2][4]) {
        const RowAddresses<typename Traits::VTile> rows(this->shared.value_tile(this->values.stage), lane % 16, lane / 16);
        SAPWOOD_UNROLL for (u32 c = 0; c < kBlocks / 2; ++c) {
            SAPWOOD_UNROLL for (u32 d = 0; d < Traits::kHeadDimV / 16; ++d) {
                u32 b[4];
                ldmatrix_x4_trans(b, rows.at(d, c * 16));
                mma_16x8x16<Element>(this->state.out[d * 2], p[c], b[0], b[1]);
                mma_16x8x16<Element>(this->state.out[d * 2 + 1], p[c], b[2], b[3]);
            }
        }
    }
};

}  // namespace sapwood::kernel
