// SPDX-License-Identifier: Apache-2.0
// The order of additions by mma.sync, where every warp adds its own part of a block's sums. In a fixed order it is warps that are
// counted: no block has to agree on when all of it has added, and who comes next waits for all warps of those before it. Sums are
// zero before the first addition in either order.
#pragma once

#include "attention/backward_order.h"
#include "attention/backward_warp_traits.h"

namespace sapwood::kernel {

template <class Traits>
struct BackwardWarpOrder {
    static constexpr u32 kSteps = abi::kRowTile / Traits::kRows;  // in which a block adds to a tile of dQ
    const abi::BackwardParams& params;
    const BackwardWarpShared<Traits>& shared;

    /// Until so many blocks have added to a tile of dQ.
    SAPWOOD_DEVICE void await_tile(u32 target, u32 before) const {
        await(tile_arrivals(params, target), before * (abi::kBackwardWarps * kSteps));
    }
    /// What this warp has added in `step` is there. Called a product later, when it mostly is, so that nothing stands still for it.
    SAPWOOD_DEVICE void leave_tile(u32 step) const {
        const TileHeader& tile = shared.header(step);
        leave(tile_arrivals(params, tile.head * params.row_tiles + static_cast<u32>(tile.begin) / abi::kRowTile));
    }
    /// The same of dK and dV of a block that has several parts.
    SAPWOOD_DEVICE void await_part() const { await(own_slot(), shared.turns().part * abi::kBackwardWarps); }
    SAPWOOD_DEVICE void leave_part() const { leave(own_slot()); }

private:
    SAPWOOD_DEVICE u32* own_slot() const { return slot_arrivals(params, shared.item().slot, shared.item().kv_head); }
    /// Other warps of this block may have counted already. All lanes ask, in one access: a branch for one of them costs registers.
    SAPWOOD_DEVICE static void await(const u32* arrivals, u32 before) {
        if constexpr (Traits::Order::kFixed) {
            while (load_acquire(arrivals) < before) {}
        }
    }
    SAPWOOD_DEVICE static void leave(u32* arrivals) {
        if constexpr (Traits::Order::kFixed) {
            warp_sync();
            if (lane_id() == 0) atomic_add_release(arrivals, 1);
        }
    }
};

}  // namespace sapwood::kernel
