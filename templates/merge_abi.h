// SPDX-License-Identifier: Apache-2.0
// Parameter block of a merge of partial results, shared by host code and kernels.
#pragma once

namespace sapwood::abi {

inline constexpr unsigned kMergeTensors = 8;
inline constexpr unsigned kMergeThreads = 128;

/// Where a tensor keeps its rows, in bytes: row r of the call is row r % rows_per_batch of batch r / rows_per_batch.
struct MergeStrides {
    long long batch, row, head;
};

/// Outputs and logarithms of one part, or of all of them `part_stride` apart.
struct MergePart {
    const void* out;
    const float* lse;
    MergeStrides out_stride, lse_stride;
};

/// The by-value argument of a merge kernel.
struct MergeParams {
    MergePart parts[kMergeTensors];  // stacked: the first one alone
    void* out;
    float* lse;  // may be null
    MergeStrides out_stride, lse_stride;
    long long part_stride, lse_part_stride;  // bytes; stacked alone
    const int* indptr;                       // [rows + 1], or null: every row has `count` parts
    unsigned heads, row_heads;               // row_heads = rows * heads
    unsigned rows_per_batch;
    unsigned count;
    float to_log2, from_log2;  // between the callers' logarithms and base 2
};

/// Lanes that share a row and head: one 16-byte vector each while there are enough, a power of two so that they can exchange by
/// shuffles; not fewer than 8, since each also looks after one part's weight.
constexpr unsigned merge_lanes(unsigned head_dim, unsigned part_bytes) {
    unsigned lanes = 8;
    while (lanes < 32 && lanes * 16 < head_dim * part_bytes) lanes *= 2;
    return lanes;
}

/// The largest power of two up to `wanted`, from 2 to `most`.
constexpr unsigned merge_batch(unsigned wanted, unsigned most) {
    unsigned batch = 2;
    while (batch * 2 <= wanted && batch * 2 <= most) batch *= 2;
    return batch;
}

}  // namespace sapwood::abi
