// SPDX-License-Identifier: Apache-2.0
// The thread of the backward kernel that adds finished tiles of dQ to the sums in global memory.
#pragma once

#include "attention/backward_order.h"

namespace sapwood::kernel {

template <class Traits>
struct BackwardSums {
    static constexpr u32 kTile = Traits::kRows * Traits::kHeadDim;
    const abi::BackwardParams& params;
    const BackwardShared<Traits>& shared;

    /// Two halves at a time, a warpgroup's each.
    SAPWOOD_DEVICE void run() const {
        wait_for_earlier_kernels();
        RingPosition<1> sum;
        for (;; sum.advance()) {
            u32 target = 0;
            for (u32 w = 0; w < 2; ++w) {
                shared.sums(w).wait_full(sum);
                target = shared.target(w);
                if (target == BackwardShared<Traits>::kNoTarget) {
                    bulk_wait();
                    return;
                }
                if (Traits::Order::kFixed && w == 0) shared.turns.wait_full(sum);
                bulk_reduce_add(params.dq_sums + static_cast<u64>(target) * kTile + w * (kTile / 2), shared.sum(w),
                                Traits::kSumBytes);
                bulk_commit();
            }
            bulk_wait_read<1>();
            mbarrier_arrive(shared.sums(0).empty(0));
            bulk_wait_read<0>();
            mbarrier_arrive(shared.sums(1).empty(0));
            if constexpr (Traits::Order::kFixed) {
                bulk_wait();
                fence_async_proxy_global();
                atomic_add_release(tile_arrivals(params, target), 1);
                mbarrier_arrive(shared.turns.empty(0));
            }
        }
    }
};

}  // namespace sapwood::kernel
