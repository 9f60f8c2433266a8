// SPDX-License-Identifier: Apache-2.0
#include "support/inputs.h"

#include <algorithm>
#include <limits>

#include "support/half.h"
#include "support/parallel.h"

namespace sapwood::support {
namespace {

// A value is one of 262141 steps, so rounding is a look-up: 1.1e9 elements (FT8 at 32/32) cost one mix and one load each.
template <class Bits, class Round>
std::vector<Bits> steps(const Round& round) {
    std::vector<Bits> table(kValueSteps);
    for (int step = 0; step < kValueSteps; ++step) table[static_cast<std::size_t>(step)] = round(value_of_step(step));
    return table;
}
const std::vector<std::uint16_t>& rounded_steps(DType dtype) {
    static const auto fp16 = steps<std::uint16_t>(to_fp16), bf16 = steps<std::uint16_t>(to_bf16);
    return dtype == DType::fp16 ? fp16 : bf16;
}
const std::vector<std::uint8_t>& rounded_steps_e4m3() {
    static const auto table = steps<std::uint8_t>(to_e4m3);
    return table;
}

template <class Bits>
void fill_from(const Rng& rng, const Bits* table, std::uint64_t first, Bits* to, std::int64_t n) {
    for (std::int64_t i = 0; i < n; ++i) to[i] = table[value_step(rng(first + static_cast<std::uint64_t>(i)))];
}

template <class Bits>
void fill_rows(const DecodeCase& which, Stream stream, Strides strides, const std::vector<Bits>& table, Bits nan, Bits* to) {
    const std::int32_t dim = stream == Stream::v && which.head_dim_v ? which.head_dim_v : which.variant.head_dim;
    const std::int32_t heads = which.variant.kv_heads;

    // Rows to fill: which logical token lies in each, -1 for a slot that no token owns.
    std::vector<std::int64_t> token_of(static_cast<std::size_t>(which.rows), -1);
    for (std::int32_t n = 0; n < which.forest.node_capacity(); ++n) {
        if (!which.forest.node_alive(n)) continue;
        const Node& node = which.forest.node(n);
        for (std::int64_t t = 0; t < node.tokens; ++t)
            token_of[static_cast<std::size_t>(which.row_of(node.kv_begin + t))] =
                which.token_begin[static_cast<std::size_t>(n)] + t;
    }
    const Rng rng(which.seed, stream);
    parallel_for(which.rows, std::max<std::int64_t>(1, (1 << 18) / (heads * dim)), [&](std::int64_t begin, std::int64_t end) {
        for (std::int64_t row = begin; row < end; ++row) {
            const std::int64_t token = token_of[static_cast<std::size_t>(row)];
            for (std::int32_t head = 0; head < heads; ++head) {
                Bits* at = to + row * strides.token + head * strides.head;
                if (token < 0) {
                    std::fill_n(at, dim, nan);
                } else {
                    fill_from(rng, table.data(), static_cast<std::uint64_t>((token * heads + head) * dim), at, dim);
                }
            }
        }
    });
}

}  // namespace

Strides nhd(std::int32_t heads, std::int32_t dim) { return {static_cast<std::int64_t>(heads) * dim, dim}; }
Strides hnd(std::int64_t rows, std::int32_t dim) { return {dim, rows * dim}; }

void fill_values(DType dtype, std::uint64_t seed, Stream stream, std::uint64_t first, std::span<std::uint16_t> to) {
    fill_from(Rng(seed, stream), rounded_steps(dtype).data(), first, to.data(), static_cast<std::int64_t>(to.size()));
}

void fill_kv_values(const Variant& variant, std::uint64_t seed, Stream stream, std::span<std::uint16_t> to) {
    if (variant.kv_dtype == KvDType::as_q) return fill_values(variant.dtype, seed, stream, 0, to);
    fill_from(Rng(seed, stream), rounded_steps_e4m3().data(), 0, reinterpret_cast<std::uint8_t*>(to.data()),
              static_cast<std::int64_t>(to.size()) * 2);
}

void fill_kv(const DecodeCase& which, Stream stream, Strides strides, std::span<std::uint16_t> to) {
    if (which.variant.kv_dtype == KvDType::e4m3) {
        fill_rows(which, stream, strides, rounded_steps_e4m3(), kNan8, reinterpret_cast<std::uint8_t*>(to.data()));
    } else {
        fill_rows(which, stream, strides, rounded_steps(which.variant.dtype), kNan16, to.data());
    }
}

void set_strides(DecodeTensors& tensors, const DecodeCase& which, const InputOptions& options) {
    const Variant& shape = which.variant;
    const std::int32_t dim_v = which.head_dim_v ? which.head_dim_v : shape.head_dim;
    const auto strides = [&](std::int64_t rows, std::int32_t heads, std::int32_t dim, std::int64_t& row, std::int64_t& head) {
        const Strides found = options.hnd ? hnd(rows, dim) : nhd(heads, dim);
        row = found.token, head = found.head;
    };
    const std::int64_t requests = which.forest.request_capacity();
    strides(requests, shape.q_heads, shape.head_dim, tensors.q_request_stride, tensors.q_head_stride);
    strides(which.rows, shape.kv_heads, shape.head_dim, tensors.k_token_stride, tensors.k_head_stride);
    strides(which.rows, shape.kv_heads, dim_v, tensors.v_token_stride, tensors.v_head_stride);
    strides(requests, shape.q_heads, dim_v, tensors.out_request_stride, tensors.out_head_stride);
}

Inputs make_inputs(const DecodeCase& which, const InputOptions& options) {
    const Variant& shape = which.variant;
    const std::int64_t requests = which.forest.request_capacity();
    const std::int32_t dim_v = which.head_dim_v ? which.head_dim_v : shape.head_dim;
    Inputs made;
    made.q = HalfBuffer(requests * shape.q_heads * shape.head_dim);
    const std::int64_t in_half = 2 / static_cast<std::int64_t>(kv_dtype_bytes(shape.kv_dtype, shape.dtype));
    made.k = HalfBuffer(which.rows * shape.kv_heads * shape.head_dim / in_half);
    made.v = HalfBuffer(which.rows * shape.kv_heads * dim_v / in_half);
    made.out = HalfBuffer(requests * shape.q_heads * dim_v);
    made.lse.resize(static_cast<std::size_t>(requests * shape.q_heads));
    set_strides(made.tensors, which, options);
    parallel_for(requests * shape.q_heads, 2048, [&](std::int64_t begin, std::int64_t end) {
        const auto dim = static_cast<std::size_t>(shape.head_dim);
        for (std::int64_t row = begin; row < end; ++row) {
            const std::int64_t at =
                row / shape.q_heads * made.tensors.q_request_stride + row % shape.q_heads * made.tensors.q_head_stride;
            fill_values(shape.dtype, which.seed, Stream::q, static_cast<std::uint64_t>(row) * dim,
                        made.q.span().subspan(static_cast<std::size_t>(at), dim));
        }
    });
    fill_kv(which, Stream::k, {made.tensors.k_token_stride, made.tensors.k_head_stride}, made.k.span());
    fill_kv(which, Stream::v, {made.tensors.v_token_stride, made.tensors.v_head_stride}, made.v.span());
    poison(made);
    made.tensors.q = made.q.data();
    made.tensors.k = made.k.data();
    made.tensors.v = made.v.data();
    made.tensors.out = made.out.data();
    made.tensors.lse = made.lse.data();
    made.tensors.page_table = shape.page_size ? which.page_table.data() : nullptr;
    return made;
}

void poison(Inputs& inputs) {
    std::fill_n(inputs.out.data(), inputs.out.size(), kNan16);
    std::fill(inputs.lse.begin(), inputs.lse.end(), std::numeric_limits<float>::quiet_NaN());
}

}  // namespace sapwood::support
