// SPDX-License-Identifier: Apache-2.0
// KvSource policies: from a KV position to a row of the K and V tensors.
#pragma once

#include "isa/isa.h"

namespace sapwood::kernel {

/// Positions are rows.
struct ContiguousKv {
    SAPWOOD_DEVICE static u32 row(const int*, u32 position) { return position; }
};

/// Pages of 1 << kShift tokens, in any order.
template <u32 kShift>
struct PagedKv {
    SAPWOOD_DEVICE static u32 row(const int* page_table, u32 position) {
        const u32 page = load_readonly_4(page_table + (position >> kShift));
        return (page << kShift) + (position & ((1u << kShift) - 1));
    }
};

}  // namespace sapwood::kernel
