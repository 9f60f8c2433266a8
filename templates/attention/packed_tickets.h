// SPDX-License-Identifier: Apache-2.0
// Work items of the packed kernels are tickets: a block's first is its own number, the others are drawn.
#pragma once

#include "abi.h"
#include "isa/isa.h"

namespace sapwood::kernel {

struct Tickets {
    abi::Counters* counters;
    SAPWOOD_DEVICE u32 first() const { return block_id(); }
    SAPWOOD_DEVICE u32 draw() const { return grid_size() + atomic_add_relaxed(&counters->ticket, 1); }
    /// The last block to come here finds that all have drawn, and leaves the counters as they were found: no memset between
    /// launches.
    SAPWOOD_DEVICE void leave() const {
        if (atomic_add_relaxed(&counters->left, 1) != grid_size() - 1) return;
        store_4(&counters->ticket, 0);
        store_4(&counters->left, 0);
    }
};

/// Where a block waits for what comes before its own: whoever holds an earlier ticket must be running, and of blocks that are known
/// by their number alone some may not be.
struct TicketsInOrder : Tickets {
    SAPWOOD_DEVICE u32 first() const { return draw(); }
    SAPWOOD_DEVICE u32 draw() const { return atomic_add_relaxed(&counters->ticket, 1); }
};

/// Heads of a section fastest, so that what they share is worked on together; then blocks, longest first; then sections.
struct TicketPlace {
    u32 block, head;
    SAPWOOD_DEVICE TicketPlace(u32 ticket, u32 blocks, u32 section_heads) {
        const u32 section = section_heads * blocks, inside = ticket % section;
        block = inside / section_heads;
        head = ticket / section * section_heads + inside % section_heads;
    }
};

/// Of a tile list: the plan's, or one that a kernel before this one has made.
template <bool kMadeOnDevice>
SAPWOOD_DEVICE U32x4 load_list_16(const void* p) {
    if constexpr (kMadeOnDevice) {
        return load_earlier_16(p);
    } else {
        return load_readonly_16(p);
    }
}

}  // namespace sapwood::kernel
