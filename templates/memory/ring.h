// SPDX-License-Identifier: Apache-2.0
// A ring of shared-memory stages between copy warps and compute warps: a full and an empty mbarrier a stage.
#pragma once

#include "isa/isa.h"

namespace sapwood::kernel {

/// Position in the ring, advanced by each role for itself: every warp visits every stage, in order.
template <u32 kStages>
struct RingPosition {
    u32 stage = 0;
    u32 parity = 0;  // of the full barrier's phase; the empty barrier's is the opposite, so that the first round passes

    SAPWOOD_DEVICE void advance() {
        if (++stage == kStages) {
            stage = 0;
            parity ^= 1;
        }
    }
};

/// Shared addresses of the barriers: full[stage] then empty[stage], 8 bytes each.
template <u32 kStages>
struct Ring {
    u32 barriers;
    SAPWOOD_DEVICE u32 full(u32 stage) const { return barriers + stage * 8; }
    SAPWOOD_DEVICE u32 empty(u32 stage) const { return barriers + (kStages + stage) * 8; }

    SAPWOOD_DEVICE void init(u32 full_arrivals, u32 empty_arrivals) const {
        for (u32 stage = 0; stage < kStages; ++stage) {
            mbarrier_init(full(stage), full_arrivals);
            mbarrier_init(empty(stage), empty_arrivals);
        }
    }
    SAPWOOD_DEVICE void wait_full(const RingPosition<kStages>& at) const { mbarrier_wait(full(at.stage), at.parity); }
    SAPWOOD_DEVICE void wait_empty(const RingPosition<kStages>& at) const { mbarrier_wait(empty(at.stage), at.parity ^ 1); }
};

}  // namespace sapwood::kernel
