// SPDX-License-Identifier: Apache-2.0
// KvSource policies: from a KV position to a row of the K and V tensors.
#pragma once

#include "isa/isa.h"

namespace sapwood::kernel {

// In two steps, so that the first, which loads, can be made well before its result is touched.

/// Positions are rows.
struct ContiguousKv {
    static constexpr bool kNeedsPosition = true;  // row() does
    SAPWOOD_DEVICE static u32 look_up(const int*, u32) { return 0; }
    SAPWOOD_DEVICE static u32 row(u32, u32 position) { return position; }
};

/// Pages of 1 << kShift tokens, in any order.
template <u32 kShift>
struct PagedKv {
    static constexpr bool kNeedsPosition = kShift > 0;
    SAPWOOD_DEVICE static u32 look_up(const int* page_table, u32 position) {
        return load_readonly_4(page_table + (position >> kShift));
    }
    SAPWOOD_DEVICE static u32 row(u32 page, u32 position) { return (page << kShift) + (position & ((1u << kShift) - 1)); }
};

}  // namespace sapwood::kernel
