// SPDX-License-Identifier: Apache-2.0
// Parameter block of a merge of partial results, shared by host code and kernels.
#pragma once

namespace sapwood::abi {

inline constexpr unsigned kMergeTensors = 8;
inline constexpr unsigned kMergeThreads = 128;

/// Where a tensor keeps its rows, in units of 16 bytes (values) or of floats (logarithms): row r of the call is row
/// r % rows_per_batch of batch r / rows_per_batch. 32 bits, so that an offset is three instructions.
struct MergeStrides {
    unsigned batch, row, head;
};

/// n / divisor for n < 2^31 as a product: a division is twenty instructions, and a warp has about 400 for its bytes.
struct MergeDivisor {
    unsigned factor, shift;
};
constexpr MergeDivisor merge_divisor(unsigned divisor) {
    unsigned log = 0;
    while ((1ull << log) < divisor) ++log;
    return {static_cast<unsigned>(((1ull << (31 + log)) + divisor - 1) / divisor), 31 + log};
}
constexpr unsigned merge_divide(unsigned n, const MergeDivisor& by) {
    return static_cast<unsigned>((static_cast<unsigned long long>(n) * by.factor) >> by.shift);
}

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
    unsigned part_stride, lse_part_stride;  // units as above; stacked alone
    const int* indptr;                      // [rows + 1], or null: every row has `count` parts
    unsigned heads, row_heads;              // row_heads = rows * heads
    unsigned rows_per_batch;
    MergeDivisor by_heads, by_rows_per_batch;
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
