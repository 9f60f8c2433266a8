// SPDX-License-Identifier: Apache-2.0
// Shared-memory layout of the packed forward kernel, as constants for kernel and host code.
#pragma once

#include "attention/decode_layout.h"
#include "packed_abi.h"

namespace sapwood::abi {

struct PackedShape {
    unsigned head_dim, head_dim_v, warps, producers, block_kv, stages;
    bool warpgroups;
};

constexpr unsigned packed_block_q(const PackedShape& s) { return s.warps * 16; }
constexpr unsigned packed_query_bytes(const PackedShape& s) { return packed_block_q(s) * s.head_dim * 2; }
constexpr unsigned packed_key_bytes(const PackedShape& s) { return s.block_kv * s.head_dim * 2; }
constexpr unsigned packed_value_bytes(const PackedShape& s) { return s.block_kv * s.head_dim_v * 2; }
/// Blocks of Q at a time. Warpgroups have a block's 128 rows as soon as the item before is done, and write that item's result over
/// its own Q; where two do not fit beside the tiles, they wait for each copy. (Warps keep Q in registers, or have smaller blocks.)
constexpr unsigned packed_query_stages(const PackedShape& s) {
    constexpr unsigned kRoom = 227 * 1024 - 1024;
    return s.warpgroups && 2 * packed_query_bytes(s) + s.stages * (packed_key_bytes(s) + packed_value_bytes(s)) <= kRoom ? 2 : 1;
}
/// What a K stage says of its tile: the span, and its first run.
constexpr unsigned kPackedHeaderBytes = 64;
/// A work item for each block of Q, and two places for tickets.
constexpr unsigned kPackedItemBytes = 64;
/// Full and empty, of Q and of each K and V stage.
constexpr unsigned packed_barriers(const PackedShape& s) { return 2 * packed_query_stages(s) + 4 * s.stages; }
constexpr unsigned packed_shared_bytes(const PackedShape& s) {
    return packed_query_stages(s) * packed_query_bytes(s) +
           s.stages * (packed_key_bytes(s) + packed_value_bytes(s) + kPackedHeaderBytes) + kPackedItemBytes +
           align_up(packed_barriers(s) * 8, 16);
}

}  // namespace sapwood::abi
