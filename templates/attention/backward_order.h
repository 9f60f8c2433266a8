// SPDX-License-Identifier: Apache-2.0
// In which order the backward kernel's blocks add to sums that they share: as they come, or as the plan has numbered them. With a
// fixed order an addition waits until as many have been made to its sums as the plan counts before it. All of those belong to
// earlier tickets, and tickets are drawn in order by blocks that run: the earliest ticket at work waits for nobody.
// By wgmma, whatever the order, the first addition to a tile of dQ is a plain write, so that nobody has to set its sums to zero;
// what is by mma.sync is in backward_warp_order.h.
#pragma once

#include "attention/backward_traits.h"
#include "attention/packed_tickets.h"
#include "isa/warpgroup.h"

namespace sapwood::kernel {

/// Additions so far to a tile of dQ, as they come only the first; who is to make that; additions to dK and dV of a slot.
SAPWOOD_DEVICE u32* tile_arrivals(const abi::BackwardParams& params, u32 target) { return params.arrivals + target; }
SAPWOOD_DEVICE u32* tile_claims(const abi::BackwardParams& params, u32 target) {
    return params.arrivals + params.kv_heads * params.group * params.row_tiles + target;
}
SAPWOOD_DEVICE u32* slot_arrivals(const abi::BackwardParams& params, u32 slot, u32 kv_head) {
    return params.arrivals + params.kv_heads * params.group * params.row_tiles + slot * (params.kv_heads / params.bundles) +
           kv_head;
}

/// Where dK and then dV of a slot are added up, kFloats in all.
template <u32 kFloats>
SAPWOOD_DEVICE f32* slot_sums(const abi::BackwardParams& params, u32 slot, u32 kv_head) {
    return params.kv_sums + static_cast<u64>(slot * (params.kv_heads / params.bundles) + kv_head) * kFloats;
}
/// In a fixed order, of a ticket. To dK and dV of a KV head parts add in the order of their tickets, and of each part its bundles:
/// a section has all bundles of its KV heads.
SAPWOOD_DEVICE abi::BlockTurns load_turns(const abi::BackwardParams& params, const TicketPlace& place) {
    const u64 words = load_readonly_8(params.block_turns + place.block);
    return {static_cast<u32>(words), static_cast<u32>(words >> 32) * params.bundles + place.head % params.bundles};
}

/// await, by wgmma: until a tile of dQ may be added to; whether this is the first time.
struct AnyOrder {
    static constexpr bool kFixed = false;
    using Tickets = kernel::Tickets;

    /// Who claims a tile is at work on it and waits only for what was claimed before, so nobody waits for ever.
    SAPWOOD_DEVICE static bool await(const abi::BackwardParams& params, u32 target, u32) {
        const u32* arrivals = tile_arrivals(params, target);
        if (load_acquire(arrivals) != 0) return false;
        if (atomic_add_relaxed(tile_claims(params, target), 1) == 0) return true;
        while (load_acquire(arrivals) == 0) {}
        return false;
    }
};
struct FixedOrder {
    static constexpr bool kFixed = true;
    using Tickets = TicketsInOrder;

    SAPWOOD_DEVICE static bool await(const abi::BackwardParams& params, u32 target, u32 turn) {
        const u32 number = load_readonly_4(params.turns + turn);
        const u32* arrivals = tile_arrivals(params, target);
        while (load_acquire(arrivals) != number) {}
        return number == 0;
    }
};

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
            const u32 head = tile.head, row_tile = static_cast<u32>(tile.begin) / Traits::kRows,
                      number = Traits::Order::kFixed ? shared.turn(at.stage) : 0;
            mbarrier_arrive(shared.queries.empty(at.stage));
            const bool ends = head == BackwardShared<Traits>::kNoTarget;
            const u32 target = ends ? head : head * params.row_tiles + row_tile;
            const bool first = !ends && Traits::Order::await(params, target, number);
            fence_async_proxy_global();
            shared.turns.wait_empty(turn);
            shared.target() = target;
            shared.is_first() = first ? 1 : 0;
            mbarrier_arrive(shared.turns.full(0));
            if (ends) return;
        }
    }
};

}  // namespace sapwood::kernel
