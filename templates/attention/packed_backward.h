// SPDX-License-Identifier: Apache-2.0
// Gradients of attention over a pack: a block of keys stays in an SM while the query rows that see it stream by.
#pragma once

#include "attention/backward_producer.h"
#include "attention/backward_products.h"
#include "attention/backward_sums.h"
#include "attention/backward_warp_products.h"

namespace sapwood::kernel {

template <class Config>
SAPWOOD_DEVICE void backward_by_warpgroups(const abi::BackwardParams& params) {
    using Traits = BackwardTraits<Config>;
    const BackwardShared<Traits> shared;
    if (thread_id() == 0) {
        shared.items.init(1, Traits::kComputeWarps * 32);
        shared.values.init(1, Traits::kComputeWarps * 32);
        shared.queries.init(1, Traits::kComputeWarps * 32 + 1);
        shared.douts.init(1, Traits::kComputeWarps * 32);
        for (u32 w = 0; w < 2; ++w) shared.sums(w).init(Traits::kComputeWarps * 16, 1);
        shared.turns.init(1, 1);
        fence_mbarrier_init();
        let_later_kernels_start();
    }
    block_sync();
    const u32 warp = warp_id();
    if (warp >= Traits::kComputeWarps) {
        registers_release<Traits::kProducerRegisters>();
        if (lane_id() != 0) return;
        if (warp == Traits::kComputeWarps) BackwardProducer<Traits>(params, shared).run();
        if (warp == Traits::kComputeWarps + 1) BackwardSums<Traits>{params, shared}.run();
        if (warp == Traits::kComputeWarps + 2) BackwardTurns<Traits>{params, shared}.run();
    } else {
        registers_take<Traits::kConsumerRegisters>();
        BackwardProducts<Traits>(params, shared).run();
    }
}

template <class Config>
SAPWOOD_DEVICE void backward_by_warps(const abi::BackwardParams& params) {
    using Traits = BackwardWarpTraits<Config>;
    const BackwardWarpShared<Traits> shared;
    if (thread_id() == 0) {
        shared.init();
        let_later_kernels_start();
    }
    wait_for_earlier_kernels();  // the barriers are seen by all behind run()'s first block_sync
    const BackwardWarpLoader<Traits> loader{params, shared};
    BackwardWarpProducts<Traits>(params, shared, loader).run();
}

template <class Config>
SAPWOOD_DEVICE void packed_backward(const abi::BackwardParams& params) {
    if constexpr (Config::kMainloop == abi::Mainloop::wgmma) {
        backward_by_warpgroups<Config>(params);
    } else {
        backward_by_warps<Config>(params);
    }
}

}  // namespace sapwood::kernel
