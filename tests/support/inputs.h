// SPDX-License-Identifier: Apache-2.0
// Q, K and V of a workload case, exactly as the workload format defines them.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "support/rng.h"
#include "support/workload.h"

namespace sapwood::support {

/// Host memory that is not cleared first: the large cases are gigabytes. Of e4m3 there are two in an element.
class HalfBuffer {
public:
    HalfBuffer() = default;
    explicit HalfBuffer(std::int64_t size)
        : data_(std::make_unique_for_overwrite<std::uint16_t[]>(static_cast<std::size_t>(size))), size_(size) {}
    std::uint16_t* data() { return data_.get(); }
    const std::uint16_t* data() const { return data_.get(); }
    std::int64_t size() const { return size_; }
    std::size_t bytes() const { return static_cast<std::size_t>(size_) * 2; }
    std::span<std::uint16_t> span() { return {data_.get(), static_cast<std::size_t>(size_)}; }

private:
    std::unique_ptr<std::uint16_t[]> data_;
    std::int64_t size_ = 0;
};

/// Where a [rows, heads, dim] tensor keeps its rows and heads, in elements.
struct Strides {
    std::int64_t token = 0, head = 0;
};
Strides nhd(std::int32_t heads, std::int32_t dim);  // [rows, heads, dim]
Strides hnd(std::int64_t rows, std::int32_t dim);   // [heads, rows, dim]

/// values(seed, stream, first …) rounded to dtype. One thread; any part of a tensor can be made alone.
void fill_values(DType dtype, std::uint64_t seed, Stream stream, std::uint64_t first, std::span<std::uint16_t> to);

/// values(seed, stream, 0 …) rounded to what K and V of this variant are made of, as many as there is room for.
void fill_kv_values(const Variant& variant, std::uint64_t seed, Stream stream, std::span<std::uint16_t> to);

/// K (stream k) or V (stream v) of a whole case into `to`, which holds case.rows * kv_heads * dim of them: values for rows that a
/// token owns, NaN for the others. Parallel.
void fill_kv(const DecodeCase& which, Stream stream, Strides strides, std::span<std::uint16_t> to);

struct InputOptions {
    bool hnd = false;  // heads outermost: K and V as [heads, rows, dim], Q and out as [heads, requests, dim]
};

/// Host tensors of a case; out and lse are poisoned with NaN.
struct Inputs {
    HalfBuffer q, k, v, out;
    std::vector<float> lse;
    /// Pointers and strides for Engine::launch on the host target and for the oracle. The page table is the case's.
    DecodeTensors tensors;
};
Inputs make_inputs(const DecodeCase& which, const InputOptions& options = {});
/// All strides of a case's tensors.
void set_strides(DecodeTensors& tensors, const DecodeCase& which, const InputOptions& options);

/// Fills out and lse with NaN again, before another checked call.
void poison(Inputs& inputs);

}  // namespace sapwood::support
