// SPDX-License-Identifier: Apache-2.0
// Attention over a pack of trees or sequences, forward: blocks stay, draw query blocks longest first, and walk only the KV tiles
// that some row of theirs sees.
#pragma once

#include "attention/packed_producer.h"
#include "attention/packed_warp_products.h"
#include "attention/packed_warpgroup_products.h"

namespace sapwood::kernel {

template <class Traits>
SAPWOOD_DEVICE void packed_consume(const abi::PackedForwardParams& params, const PackedShared<Traits>& shared) {
    using Products = typename Select<Traits::kWarpgroups, PackedWarpgroupProducts<Traits>, PackedWarpProducts<Traits>>::Type;
    Products rows(params, shared);
    rows.begin();
    rows.take_item();
    while (rows.item.tiles != PackedItem::kStop) {
        rows.state.clear();
        if (rows.item.tiles == 0) {
            rows.release_query();
            rows.write();
            rows.take_item();
        } else {
            rows.attend_item();
        }
    }
    rows.end();
}

template <class Config>
SAPWOOD_DEVICE void packed_forward(const abi::PackedForwardParams& params) {
    using Traits = PackedTraits<Config>;
    using Producer = PackedProducer<Traits>;
    const PackedShared<Traits> shared;
    if (thread_id() == 0) {
        shared.query.init(Producer::Copy::kArrivals, Traits::kComputeThreads);
        shared.keys.init(Producer::Copy::kArrivals, Traits::kComputeThreads);
        shared.values.init(Producer::Copy::kArrivals, Traits::kComputeThreads);
        if constexpr (Traits::kWarpgroups) fence_mbarrier_init();
        let_later_kernels_start();
    }
    block_sync();
    if (warp_id() >= Traits::kWarps) {
        if constexpr (Traits::kWarpgroups) registers_release<Traits::kProducerRegisters>();
        if (Producer::Copy::kThreads > 1 || Producer::leader()) Producer(params, shared).run();
    } else {
        if constexpr (Traits::kWarpgroups) registers_take<Traits::kConsumerRegisters>();
        packed_consume<Traits>(params, shared);
    }
}

}  // namespace sapwood::kernel
