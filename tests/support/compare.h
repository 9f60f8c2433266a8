// SPDX-License-Identifier: Apache-2.0
// How far a result is from the oracle's. A NaN never passes: it makes the error infinite.
#pragma once

#include <cstdint>
#include <span>
#include <string>

#include "oracle/decode_oracle.h"
#include "sapwood/decode.h"

namespace sapwood::support {

/// ‖got − want‖ / ‖want‖ in the Frobenius norm; ‖got‖ if want is all zero.
double relative_error(std::span<const double> got, std::span<const double> want);
/// Largest |got − want|; equal infinities differ by 0.
double max_abs_error(std::span<const double> got, std::span<const double> want);

struct Comparison {
    std::int64_t requests = 0;   // compared
    double out_error = 0;        // relative, over all of them
    double worst_request = 0;    // relative, of the worst request alone: one bad row cannot hide in a large norm
    double lse_error = 0;        // absolute
    std::int64_t nan_count = 0;  // elements of out or lse that are NaN: never written, or wrong

    /// 1e-3 (fp16), 8e-3 (bf16); LSE 1e-3; a single row may be four times worse than the whole.
    bool passes(DType dtype) const;
    std::string to_string() const;
};

double tolerance(DType dtype);

/// Compares rows of `tensors.out` and `tensors.lse` (host pointers; lse may be null) with the oracle's result for its requests.
Comparison compare(const DecodeProblem& problem, const DecodeTensors& tensors, const oracle::DecodeResult& want);

/// `count` of 0 … n-1, evenly spread, first one included.
std::vector<std::int32_t> spread(std::int32_t n, std::int32_t count);

}  // namespace sapwood::support
