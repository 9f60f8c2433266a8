// SPDX-License-Identifier: Apache-2.0
// Tiles and shared-memory layout of the packed backward kernel with the mma.sync main loop, as constants for kernel and host code.
//
// What a block of 8 warps needs, with 255 registers a thread (no copy warps: they would leave 168) and, of shared memory, 163 KB on
// SM 8.0, 227 KB from 9.0 and 10.0 on, 99 KB on 8.6, 8.9 and 12.0. Sums are dK and dV, which stay; products are scores and
// gradients of weights, or a tile of dQ.
//
//   head dims | keys rows stages | shared | sums products | where
//   64        | 128  64   2      |  98 KB |  64  64       | every SM
//   96        | 128  64   2      | 130 KB |  96  64       | 163 KB and more
//   96        |  64  64   2      |  89 KB |  48  32       | 99 KB
//   128       | 128  64   2      | 162 KB | 128  64       | 163 KB and more
//   128       |  64  64   1      |  81 KB |  64  32       | 99 KB
//   192, 128  |  64  64   2      | 138 KB |  80  48       | 163 KB and more
//   192, 128  |  64  64   1      |  97 KB |  80  48       | 99 KB
//   192       |  64  64   2      | 162 KB |  96  48       | 163 KB and more
//   192       |  32  64   1      |  81 KB |  48  48       | 99 KB
//   256       |  64  64   2      | 210 KB | 128  64       | 227 KB
//   256       |  64  64   1      | 145 KB | 128  64       | 163 KB
//   256       |  32  32   1      |  69 KB |  64  32       | 99 KB
#pragma once

#include "attention/packed_layout.h"

namespace sapwood::abi {

struct BackwardWarpShape {
    unsigned head_dim, head_dim_v, keys, stages;
};

inline constexpr unsigned kBackwardWarps = 8;
/// Headers of steps: of one that ends, the current one, and two that are being prepared.
inline constexpr unsigned kBackwardHeaders = 4;

/// Query rows of a step: a row tile, or half of one where wide rows leave no room for more.
constexpr unsigned backward_step_rows(const BackwardWarpShape& s) {
    return s.keys == 32 && (s.head_dim > 192 || s.head_dim_v > 192) ? kRowTile / 2 : kRowTile;
}
/// Warps along the keys; the others lie along the rows of scores and the columns of dK and dV. Few are good, since a warp with more
/// keys reads dO and Q less often, but columns come by 16 a warp.
constexpr unsigned backward_key_warps(const BackwardWarpShape& s) {
    return s.keys == 128 || (s.keys == 64 && (s.head_dim % 64 != 0 || s.head_dim_v % 64 != 0)) ? 4 : 2;
}
constexpr bool backward_divides(const BackwardWarpShape& s) {
    const unsigned columns = kBackwardWarps / backward_key_warps(s) * 16;
    return s.head_dim % columns == 0 && s.head_dim_v % columns == 0;
}
/// fp32 accumulators a thread: dK and dV, and beside them two tiles of scores or one of dQ.
constexpr unsigned backward_accumulators(const BackwardWarpShape& s) {
    const unsigned threads = kBackwardWarps * 32, rows = backward_step_rows(s);
    const unsigned scores = 2 * s.keys * rows / threads, dq = rows * s.head_dim / threads;
    return s.keys * (s.head_dim + s.head_dim_v) / threads + (scores > dq ? scores : dq);
}

constexpr unsigned backward_warp_rows_bytes(const BackwardWarpShape& s, unsigned dim) { return backward_step_rows(s) * dim * 2; }
constexpr unsigned backward_weights_bytes(const BackwardWarpShape& s) { return s.keys * backward_step_rows(s) * 2; }
/// K, V; Q and dO by stage; weights and dS.
constexpr unsigned backward_warp_tiles_bytes(const BackwardWarpShape& s) {
    return s.keys * (s.head_dim + s.head_dim_v) * 2 +
           s.stages * (backward_warp_rows_bytes(s, s.head_dim) + backward_warp_rows_bytes(s, s.head_dim_v)) +
           2 * backward_weights_bytes(s);
}
/// Two fp32 values a row and stage, headers, the work item and where its list stands.
constexpr unsigned backward_warp_words_bytes(const BackwardWarpShape& s) {
    return s.stages * 2 * backward_step_rows(s) * 4 + kBackwardHeaders * kPackedHeaderBytes + 2 * kPackedItemBytes;
}
/// A stage has come; its rows are done with; dS is there; it is done with.
constexpr unsigned backward_warp_barriers(const BackwardWarpShape& s) { return s.stages + 3; }
constexpr unsigned backward_warp_shared_bytes(const BackwardWarpShape& s) {
    return backward_warp_tiles_bytes(s) + backward_warp_words_bytes(s) + align_up(backward_warp_barriers(s) * 8, 16);
}

}  // namespace sapwood::abi
