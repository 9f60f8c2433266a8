// SPDX-License-Identifier: Apache-2.0
// Shared-memory layout of the packed forward kernel, as constants for kernel and host code.
#pragma once

#include "attention/decode_layout.h"
#include "packed_abi.h"

namespace sapwood::abi {

struct PackedShape {
    unsigned head_dim, head_dim_v, warps, producers, block_kv, stages;
};

constexpr unsigned packed_block_q(const PackedShape& s) { return s.warps * 16; }
constexpr unsigned packed_query_bytes(const PackedShape& s) { return packed_block_q(s) * s.head_dim * 2; }
constexpr unsigned packed_key_bytes(const PackedShape& s) { return s.block_kv * s.head_dim * 2; }
constexpr unsigned packed_value_bytes(const PackedShape& s) { return s.block_kv * s.head_dim_v * 2; }
/// What a K stage says of its tile: the span, and its first run.
constexpr unsigned kPackedHeaderBytes = 64;
/// The work item, and two places for tickets.
constexpr unsigned kPackedItemBytes = 64;
/// Full and empty, of Q and of each K and V stage.
constexpr unsigned packed_barriers(const PackedShape& s) { return 2 + 4 * s.stages; }
constexpr unsigned packed_shared_bytes(const PackedShape& s) {
    return packed_query_bytes(s) + s.stages * (packed_key_bytes(s) + packed_value_bytes(s) + kPackedHeaderBytes) +
           kPackedItemBytes + align_up(packed_barriers(s) * 8, 16);
}

}  // namespace sapwood::abi
