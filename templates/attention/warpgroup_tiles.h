// SPDX-License-Identifier: Apache-2.0
// Products of a warpgroup's 64 rows with a whole tile of keys and of values, issued and committed, not waited for. sm_90a.
#pragma once

#include "isa/warpgroup.h"

namespace sapwood::kernel {

/// s = 64 rows of Q at `rows` times the keys at `keys`, both in shared memory as Panels.
template <class Element, u32 kHeadDim, class QTile, class KTile, u32 kBlocks>
SAPWOOD_DEVICE void multiply_keys(f32 (&s)[kBlocks][4], u32 rows, u32 keys) {
    const auto a = wgmma_panel(rows, QTile::kEightRows), b = wgmma_panel(keys, KTile::kEightRows);
    SAPWOOD_UNROLL for (u32 step = 0; step < kHeadDim / 16; ++step) {
        const u32 panel = step / 4, inside = step % 4 * 32;
        wgmma_shared<Element, kBlocks * 8>(s, wgmma_advance(a, panel * QTile::kGroupStride + inside),
                                           wgmma_advance(b, panel * KTile::kGroupStride + inside), step > 0);
    }
    wgmma_commit();
}

/// out += the weights p times the values at `values`.
template <class Element, class VTile, u32 kSteps, u32 kBlocks>
SAPWOOD_DEVICE void multiply_values(f32 (&out)[kBlocks][4], const u32 (&p)[kSteps][4], u32 values) {
    constexpr u32 kDim = kBlocks * 8;
    SAPWOOD_UNROLL for (u32 c = 0; c < kSteps; ++c) {
        // 16 keys from 16 c on, columns from d on.
        const auto from = [&](u32 d) {
            return wgmma_advance(wgmma_panels(values, VTile::kGroupStride, VTile::kEightRows),
                                 d / 64 * VTile::kGroupStride + VTile::row(c * 16));
        };
        SAPWOOD_UNROLL for (u32 d = 0; d + 128 <= kDim; d += 128) {
            wgmma_registers<Element, 128>(reinterpret_cast<f32(&)[16][4]>(out[d / 8]), p[c], from(d));
        }
        if constexpr (kDim % 128 != 0) {
            constexpr u32 d = kDim / 128 * 128;
            wgmma_registers<Element, 64>(reinterpret_cast<f32(&)[8][4]>(out[d / 8]), p[c], from(d));
        }
    }
    wgmma_commit();
}

/// Two warpgroups that multiply in turn, so that one takes exponentials while the other multiplies. Both have as many turns; a
/// matter of speed alone.
struct Turns {
    u32 first;  // of two named barriers, one a warpgroup
    u32 unit;   // the warpgroup, 0 or 1: asking for the warp's number anew takes an exchange between lanes, in each turn

    SAPWOOD_DEVICE u32 own() const { return first + unit; }
    SAPWOOD_DEVICE u32 other() const { return first + (unit ^ 1); }
    /// The first warpgroup has the first turn …
    SAPWOOD_DEVICE void begin() const {
        if (own() != first) turn_pass(first);
    }
    SAPWOOD_DEVICE void wait() const { turn_wait(own()); }
    SAPWOOD_DEVICE void pass() const { turn_pass(other()); }
    /// … and, both having had as many, the last pass is still to be taken.
    SAPWOOD_DEVICE void end() const {
        if (own() == first) turn_wait(first);
    }
};

}  // namespace sapwood::kernel
