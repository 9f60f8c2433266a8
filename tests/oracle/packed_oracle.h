// SPDX-License-Identifier: Apache-2.0
// Attention over a pack and its gradients from the definition, in fp64. Who sees whom is asked pair by pair, of the segments or the
// sequences themselves: nothing is shared with the library's runs and tile lists.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "sapwood/packed.h"

namespace sapwood::oracle {

/// Whether query row `row` sees key `key`.
using Sees = std::function<bool(std::int64_t row, std::int64_t key)>;

/// Trees of segments, by following parents.
Sees sees_segments(std::span<const Segment> segments);
Sees sees_sequences(std::span<const std::int32_t> cu_q, std::span<const std::int32_t> cu_k, const PackedMask& mask);
/// Of these, FlashAttention-2's tree mask: start_q[row] <= end_k[key].
Sees sees_arrays(Sees sequences, std::span<const std::int32_t> start_q, std::span<const std::int32_t> end_k);

struct PackedResult {
    std::vector<double> out;  // [rows, Hq, Dv]
    std::vector<double> lse;  // [Hq, rows], natural logarithm
};
/// Of the chosen rows, or of all of them. `tensors` holds host pointers; strides count; out and lse are not touched.
PackedResult packed_forward(const PackedProblem& problem, const PackedTensors& tensors, std::int64_t rows, std::int64_t keys,
                            const Sees& sees, std::span<const std::int64_t> chosen = {});

struct PackedGradients {
    std::vector<double> dq, dk, dv;  // [rows, Hq, D], [keys, Hkv, D], [keys, Hkv, Dv]
};
/// Gradients of sum(out * dout) + sum(lse * dlse). dout [rows, Hq, Dv], dlse [Hq, rows] or empty.
PackedGradients packed_backward(const PackedProblem& problem, const PackedTensors& tensors, std::int64_t rows, std::int64_t keys,
                                const Sees& sees, std::span<const double> dout, std::span<const double> dlse);
/// The same of some rows (dq) and some keys (dk and dv) of a pack of any size, without dlse: of the out and lse in `tensors`, which
/// a backward pass is given and does not judge. All tensors are dense; `dout` is [rows, Hq, Dv] of the problem's dtype.
PackedGradients packed_backward_of(const PackedProblem& problem, const PackedTensors& tensors, std::int64_t rows, std::int64_t keys,
                                   const Sees& sees, const std::uint16_t* dout, std::span<const std::int64_t> of_rows,
                                   std::span<const std::int64_t> of_keys);

}  // namespace sapwood::oracle
