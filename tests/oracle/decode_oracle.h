// SPDX-License-Identifier: Apache-2.0
// Tree decode attention from its definition, in fp64. Deliberately naive and independent of lib/: it follows parent links itself
// and shares nothing with the kernels but the public structs.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "sapwood/decode.h"
#include "sapwood/forest.h"

namespace sapwood::oracle {

struct DecodeResult {
    std::vector<std::int32_t> requests;  // as asked
    std::vector<double> out;             // [requests, Hq, Dv]
    std::vector<double> lse;             // [requests, Hq], natural logarithm
};

/// KV rows of every key that a request sees, root first. Empty for an empty path.
std::vector<std::int64_t> path_rows(const Forest& forest, std::int32_t request, std::int32_t page_size,
                                    const std::int32_t* page_table);

/// out (Dv values) and lse of one request and one query head. `tensors` holds host pointers; its strides count. Its out and lse are
/// not touched. An empty path gives 0 and -inf.
void decode_one(const DecodeProblem& problem, const DecodeTensors& tensors, std::span<const std::int64_t> rows,
                std::int32_t request, std::int32_t head, double* out, double* lse);

/// A chosen subset of the requests, all heads, in parallel. `threads` 0 = one a core.
DecodeResult decode(const Forest& forest, const DecodeProblem& problem, const DecodeTensors& tensors,
                    std::span<const std::int32_t> requests, unsigned threads = 0);
/// Every live request.
DecodeResult decode(const Forest& forest, const DecodeProblem& problem, const DecodeTensors& tensors, unsigned threads = 0);

}  // namespace sapwood::oracle
