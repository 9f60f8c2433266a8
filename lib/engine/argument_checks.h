// SPDX-License-Identifier: Apache-2.0
// Tensors of a call, checked: each function throws kInvalidArgument naming the tensor.
#pragma once

#include <cstdint>
#include <limits>
#include <string>
#include <utility>

#include "base/error.h"
#include "engine/device_memory.h"
#include "packed_abi.h"
#include "sapwood/types.h"

namespace sapwood::arguments {

inline constexpr std::int64_t kElement = 2;  // but of e4m3 K and V
inline constexpr std::int64_t kAlign = 16;   // bytes: every row is read and written in 16-byte pieces

[[noreturn]] inline void refuse(const char* what, const std::string& why) {
    raise(ErrorCode::kInvalidArgument, std::string(what) + " " + why);
}

inline void check_pointer(const char* what, const void* pointer, std::uintptr_t align) {
    if (pointer == nullptr) refuse(what, "is null");
    if (reinterpret_cast<std::uintptr_t>(pointer) % align != 0) {
        refuse(what, "is at an address that is not a multiple of " + std::to_string(align) + " bytes");
    }
}

/// The arrays of a pack that has them; one without would ignore them, which is refused as well.
inline void check_arrays(bool wanted, const std::int32_t* start_q, const std::int32_t* end_k) {
    for (const auto& [name, array] : {std::pair{"start_q", start_q}, std::pair{"end_k", end_k}}) {
        if (wanted && array == nullptr)
            refuse(name, "is null, and the mask of the pack has dfs_arrays: every call brings start_q and end_k");
        if (!wanted && array != nullptr) refuse(name, "is given, and the mask of the pack has no dfs_arrays: it would be ignored");
        if (wanted) check_pointer(name, array, 4);
    }
}

/// Stride in bytes: the given one or, for 0, the packed one; a multiple of 16 bytes that fits `limit`.
inline std::int64_t stride(const char* what, std::int64_t given, std::int64_t packed, std::int64_t limit,
                           std::int64_t size = kElement) {
    const std::int64_t elements = given == 0 ? packed : given;
    if (elements < 0 || elements > limit / size || elements * size % kAlign != 0) {
        refuse(what, "is " + std::to_string(elements) + " elements; it must be a positive multiple of " +
                         std::to_string(kAlign / size) + ", at most " + std::to_string(limit / size));
    }
    return elements * size;
}

/// A tensor [tokens, heads, dim], its strides in bytes; 0 = densely packed.
inline abi::Tensor tensor(const std::string& name, const void* data, std::int64_t token_stride, std::int64_t head_stride,
                          std::int64_t heads, std::int64_t dim) {
    constexpr std::int64_t limit = std::numeric_limits<std::int64_t>::max() / 4;
    check_pointer(name.c_str(), data, kAlign);
    return {const_cast<void*>(data), stride((name + "_token_stride").c_str(), token_stride, heads * dim, limit),
            stride((name + "_head_stride").c_str(), head_stride, dim, limit)};
}

/// The same of one that is written: its rows must not overlap.
inline abi::Tensor written(const std::string& name, const void* data, std::int64_t token_stride, std::int64_t head_stride,
                           std::int64_t heads, std::int64_t dim) {
    const abi::Tensor given = tensor(name, data, token_stride, head_stride, heads, dim);
    if (given.head_stride < dim * kElement || given.token_stride < dim * kElement) {
        refuse(name.c_str(), "has a head or token stride below its head dim " + std::to_string(dim) + ": rows would overlap");
    }
    return given;
}

/// What the copy engine is told of a tensor [rows, heads, dim] whose tiles have `box_rows` rows; if `box_heads` is not 0, of each
/// of so many heads.
inline abi::TensorMap tensor_map(Memory& memory, DType dtype, const abi::Tensor& tensor, std::int64_t rows, std::int64_t heads,
                                 std::int64_t dim, std::int64_t box_rows, std::int64_t box_heads = 0) {
    return memory.tensor_map({.data = tensor.data,
                              .bf16 = dtype == DType::bf16,
                              .rows = rows,
                              .heads = heads,
                              .dim = dim,
                              .token_stride = tensor.token_stride,
                              .head_stride = tensor.head_stride,
                              .box_rows = box_rows,
                              .box_heads = box_heads});
}

}  // namespace sapwood::arguments
