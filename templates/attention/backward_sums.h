// SPDX-License-Identifier: Apache-2.0
// The thread of the backward kernel that adds finished tiles of dQ to the sums in global memory.
#pragma once

#include "attention/backward_order.h"

namespace sapwood::kernel {

template <class Traits>
struct BackwardSums {
    using Shared = BackwardShared<Traits>;
    static constexpr u32 kTile = Traits::kRows * Traits::kHeadDim;
    const abi::BackwardParams& params;
    const Shared& shared;

    /// Two halves at a time, a warpgroup's each.
    SAPWOOD_DEVICE void run() const {
        wait_for_earlier_kernels();
        RingPosition<1> sum;
        for (;; sum.advance()) {
            shared.turns.wait_full(sum);
            const u32 target = shared.target();
            const bool first = shared.is_first() != 0;
            mbarrier_arrive(shared.turns.empty(0));
            if (target == Shared::kNoTarget) break;
            shared.sums(0).wait_full(sum);
            send(target, 0, first);
            shared.sums(1).wait_full(sum);
            send(target, 1, first);
            bulk_wait_read<1>();
            mbarrier_arrive(shared.sums(0).empty(0));
            bulk_wait_read<0>();
            mbarrier_arrive(shared.sums(1).empty(0));
            if (first || Traits::Order::kFixed) {  // others wait for it
                bulk_wait();
                fence_async_proxy_global();
                atomic_add_release(tile_arrivals(params, target), 1);
            }
        }
        bulk_wait();
    }

private:
    SAPWOOD_DEVICE void send(u32 target, u32 w, bool first) const {
        f32* to = params.dq_sums + static_cast<u64>(target) * kTile + w * (kTile / 2);
        if (first) {
            bulk_store(to, shared.sum(w), Traits::kSumBytes);
        } else {
            bulk_reduce_add(to, shared.sum(w), Traits::kSumBytes);
        }
        bulk_commit();
    }
};

}  // namespace sapwood::kernel
