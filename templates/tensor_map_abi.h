// SPDX-License-Identifier: Apache-2.0
// What kernels are told of tensors that the copy engine copies for them.
#pragma once

#include "abi.h"

namespace sapwood::abi {

/// A tensor of 16-bit elements as the copy engine knows it (CUtensorMap); on the host target, a HostTensorMap.
struct alignas(64) TensorMap {
    unsigned long long words[16];
};
struct HostTensorMap {
    const void* data;
    long long token_stride, head_stride;      // bytes
    unsigned long long rows;                  // of the tensor
    unsigned long long box_rows, box_panels;  // of a load: rows, and groups of 64 elements
    unsigned long long box_heads;             // 0, or of each panel the rows of so many heads
    unsigned long long box_groups;            // 0, or so many groups of eight rows, all panels of one before the next
};

/// The by-value argument of a decode kernel that has the copy engine fetch what lies in a row: a load is 16 tokens of one KV head.
struct MappedDecodeParams : DecodeParams {
    TensorMap k_map, v_map;
};

}  // namespace sapwood::abi
