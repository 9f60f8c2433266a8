// SPDX-License-Identifier: Apache-2.0
// Shared-memory layout of the packed backward kernel, as constants for kernel and host code.
#pragma once

#include "attention/packed_layout.h"

namespace sapwood::abi {

struct BackwardShape {
    unsigned head_dim, head_dim_v;
};

inline constexpr unsigned kBackwardKeys = 128;  // of a block
inline constexpr unsigned kBackwardStages = 2;  // row tiles in flight
inline constexpr unsigned kBackwardItems = 2;   // K of the next item comes while the last steps of the one before still need theirs
inline constexpr unsigned kBackwardThreads = 384;

constexpr unsigned backward_rows_bytes(unsigned dim) { return kRowTile * dim * 2; }
/// K by item, V; Q and dO by stage; dS by stage; sums of dQ. Head dim 128: 224 KiB of 227; a second V would not fit, and need not:
/// V is free half a step and an epilogue before the next item wants its own.
constexpr unsigned backward_tiles_bytes(const BackwardShape& s) {
    return kBackwardKeys * (kBackwardItems * s.head_dim + s.head_dim_v) * 2 +
           kBackwardStages * (backward_rows_bytes(s.head_dim) + backward_rows_bytes(s.head_dim_v) + kRowTile * kBackwardKeys * 2) +
           kRowTile * s.head_dim * 4;
}
/// Two fp32 values a row and stage, headers, the work item, where dQ goes.
constexpr unsigned backward_words_bytes() {
    return kBackwardStages * (2 * kRowTile * 4 + kPackedHeaderBytes) + kPackedItemBytes + 16;
}
/// Full and empty of K by item, of V, of Q and dO by stage, of the two halves of dQ, of their turn.
constexpr unsigned backward_barriers() { return 2 * kBackwardItems + 2 + 4 * kBackwardStages + 4 + 2; }
constexpr unsigned backward_shared_bytes(const BackwardShape& s) {
    return backward_tiles_bytes(s) + backward_words_bytes() + align_up(backward_barriers() * 8, 16);
}

}  // namespace sapwood::abi
