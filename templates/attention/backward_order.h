// SPDX-License-Identifier: Apache-2.0
// In which order the backward kernel's blocks add to sums that they share: as they come, or as the plan has numbered them. With a
// fixed order an addition waits until as many have been made to its sums as the plan counts before it. All of those belong to
// earlier tickets, and tickets are drawn in order by blocks that run: the earliest ticket at work waits for nobody.
#pragma once

#include "attention/backward_traits.h"
#include "attention/packed_tickets.h"
#include "isa/warpgroup.h"

namespace sapwood::kernel {

struct AnyOrder {
    static constexpr bool kFixed = false;
    using Tickets = kernel::Tickets;
};
struct FixedOrder {
    static constexpr bool kFixed = true;
    using Tickets = TicketsInOrder;
};

/// Additions so far to a tile of dQ, and to dK and dV of a slot.
SAPWOOD_DEVICE u32* tile_arrivals(const abi::BackwardParams& params, u32 target) { return params.arrivals + target; }
SAPWOOD_DEVICE u32* slot_arrivals(const abi::BackwardParams& params, u32 slot, u32 kv_head) {
    return params.arrivals + params.kv_heads * params.group * params.row_tiles + slot * params.kv_heads + kv_head;
}

/// A thread of its own waits for the turns, a tile of dQ ahead of the thread that adds, which so loses no time where a turn has
/// come, as it nearly always has.
template <class Traits>
struct BackwardTurns {
    const abi::BackwardParams& params;
    const BackwardShared<Traits>& shared;

    SAPWOOD_DEVICE void run() const {
        wait_for_earlier_kernels();
        RingPosition<Traits::kStages> at;
        RingPosition<1> turn;
        for (;; at.advance(), turn.advance()) {
            shared.queries.wait_full(at);
            const TileHeader& tile = shared.header(at.stage);
            const u32 head = tile.head, row = static_cast<u32>(tile.begin), turn_at = shared.turn(at.stage);
            mbarrier_arrive(shared.queries.empty(at.stage));
            if (head == BackwardShared<Traits>::kNoTarget) return;
            const u32 number = load_readonly_4(params.turns + turn_at);
            const u32* arrivals = tile_arrivals(params, head * params.row_tiles + row / Traits::kRows);
            while (load_acquire(arrivals) != number) {}
            fence_async_proxy_global();
            shared.turns.wait_empty(turn);
            mbarrier_arrive(shared.turns.full(0));
        }
    }
};

}  // namespace sapwood::kernel
