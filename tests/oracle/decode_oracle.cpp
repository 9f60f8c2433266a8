// SPDX-License-Identifier: Apache-2.0
#include "oracle/decode_oracle.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>

#include "support/half.h"
#include "support/parallel.h"

namespace sapwood::oracle {
namespace {

// All 65536 values of a format: widening is the oracle's inner loop.
const float* widened(DType dtype) {
    static const auto make = [](DType type) {
        std::vector<float> table(65536);
        for (std::uint32_t i = 0; i < 65536; ++i) table[i] = support::widen(type, static_cast<std::uint16_t>(i));
        return table;
    };
    static const std::vector<float> fp16 = make(DType::fp16), bf16 = make(DType::bf16);
    return (dtype == DType::fp16 ? fp16 : bf16).data();
}

const float* widened_e4m3() {
    static const auto table = [] {
        std::array<float, 256> values{};
        for (std::uint32_t i = 0; i < 256; ++i) values[i] = support::from_e4m3(static_cast<std::uint8_t>(i));
        return values;
    }();
    return table.data();
}

/// K or V: numbers of 8 or 16 bits, what they stand for, and the factor of this head.
template <class Bits>
struct Operand {
    const Bits* bits;
    const float* widen;
    double scale;
    double operator[](std::int64_t i) const { return widen[bits[i]]; }  // without the factor
    Operand at(std::int64_t offset) const { return {bits + offset, widen, scale}; }
};

struct Head {
    std::int64_t dim, dim_v, k_token, v_token;
    double scale, softcap;
};

template <class Bits>
void attend(const Head& head, std::span<const double> query, Operand<Bits> k, Operand<Bits> v, std::span<const std::int64_t> rows,
            double* out, double* lse) {
    std::vector<double> score(rows.size());
    double top = -std::numeric_limits<double>::infinity();
    for (std::size_t j = 0; j < rows.size(); ++j) {
        const Operand<Bits> key = k.at(rows[j] * head.k_token);
        std::array<double, 4> sums{};  // independent chains; head dims are multiples of 4
        for (std::int64_t d = 0; d < head.dim; d += 4)
            for (std::size_t c = 0; c < 4; ++c)
                sums[c] += query[static_cast<std::size_t>(d) + c] * key[d + static_cast<std::int64_t>(c)];
        double s = head.scale * k.scale * (sums[0] + sums[1] + sums[2] + sums[3]);
        if (head.softcap != 0) s = head.softcap * std::tanh(s / head.softcap);
        score[j] = s;
        top = std::max(top, s);
    }
    double sum = 0;
    for (std::size_t j = 0; j < rows.size(); ++j) {
        const double weight = std::exp(score[j] - top);
        const Operand<Bits> value = v.at(rows[j] * head.v_token);
        for (std::int64_t d = 0; d < head.dim_v; ++d) out[d] += weight * value[d];
        sum += weight;
    }
    for (std::int64_t d = 0; d < head.dim_v; ++d) out[d] *= v.scale / sum;
    *lse = top + std::log(sum);
}

}  // namespace

std::vector<std::int64_t> path_rows(const Forest& forest, std::int32_t request, std::int32_t page_size,
                                    const std::int32_t* page_table) {
    std::vector<std::int32_t> path;
    for (std::int32_t node = forest.request_node(request); node != Forest::kNoNode; node = forest.node(node).parent)
        path.push_back(node);
    std::reverse(path.begin(), path.end());
    std::vector<std::int64_t> rows;
    for (const std::int32_t id : path) {
        const Node& node = forest.node(id);
        const DraftMask* mask = forest.draft_mask(id);
        for (std::int64_t position = node.kv_begin; position < node.kv_begin + node.tokens; ++position) {
            if (mask != nullptr &&
                !mask->sees(request - forest.draft_first_request(id), static_cast<std::int32_t>(position - node.kv_begin)))
                continue;
            rows.push_back(page_size == 0 ? position
                                          : page_table[position / page_size] * std::int64_t{page_size} + position % page_size);
        }
    }
    return rows;
}

void decode_one(const DecodeProblem& problem, const DecodeTensors& tensors, std::span<const std::int64_t> rows,
                std::int32_t request, std::int32_t head, double* out, double* lse) {
    const std::int64_t dim = problem.head_dim, dim_v = problem.head_dim_v ? problem.head_dim_v : problem.head_dim;
    const std::int64_t kv_head = head / (problem.q_heads / problem.kv_heads);
    const auto stride = [](std::int64_t given, std::int64_t packed) { return given ? given : packed; };
    const std::int64_t k_token = stride(tensors.k_token_stride, problem.kv_heads * dim),
                       k_head = stride(tensors.k_head_stride, dim);
    const std::int64_t v_token = stride(tensors.v_token_stride, problem.kv_heads * dim_v),
                       v_head = stride(tensors.v_head_stride, dim_v);
    const auto* q = static_cast<const std::uint16_t*>(tensors.q) +
                    request * stride(tensors.q_request_stride, problem.q_heads * dim) + head * stride(tensors.q_head_stride, dim);
    const float* widen = widened(problem.dtype);
    const double scale = problem.scale != 0 ? static_cast<double>(problem.scale) : 1 / std::sqrt(static_cast<double>(dim));

    std::fill_n(out, dim_v, 0.0);
    *lse = -std::numeric_limits<double>::infinity();
    if (rows.empty()) return;

    std::vector<double> query(static_cast<std::size_t>(dim));
    for (std::int64_t d = 0; d < dim; ++d) query[static_cast<std::size_t>(d)] = widen[q[d]];
    const Head shape = {dim, dim_v, k_token, v_token, scale, static_cast<double>(problem.softcap)};
    const auto attend_as = [&]<class Bits>(Bits, const float* table) {
        const auto operand = [&](const void* bits, std::int64_t offset, const float* scales) {
            return Operand<Bits>{static_cast<const Bits*>(bits) + offset, table, scales != nullptr ? double{scales[kv_head]} : 1.0};
        };
        attend(shape, query, operand(tensors.k, kv_head * k_head, tensors.k_scale),
               operand(tensors.v, kv_head * v_head, tensors.v_scale), rows, out, lse);
    };
    if (problem.kv_dtype == KvDType::e4m3) {
        attend_as(std::uint8_t{}, widened_e4m3());
    } else {
        attend_as(std::uint16_t{}, widen);
    }
}

DecodeResult decode(const Forest& forest, const DecodeProblem& problem, const DecodeTensors& tensors,
                    std::span<const std::int32_t> requests, unsigned threads) {
    const std::int64_t dim_v = problem.head_dim_v ? problem.head_dim_v : problem.head_dim, heads = problem.q_heads;
    DecodeResult result;
    result.requests.assign(requests.begin(), requests.end());
    result.out.resize(requests.size() * static_cast<std::size_t>(heads * dim_v));
    result.lse.resize(requests.size() * static_cast<std::size_t>(heads));
    std::vector<std::vector<std::int64_t>> rows;
    for (const std::int32_t request : requests) rows.push_back(path_rows(forest, request, problem.page_size, tensors.page_table));
    support::parallel_for(
        static_cast<std::int64_t>(requests.size()) * heads, 1,
        [&](std::int64_t begin, std::int64_t end) {
            for (std::int64_t i = begin; i < end; ++i) {
                const auto r = static_cast<std::size_t>(i / heads);
                decode_one(problem, tensors, rows[r], requests[r], static_cast<std::int32_t>(i % heads),
                           result.out.data() + i * dim_v, result.lse.data() + i);
            }
        },
        threads);
    return result;
}

DecodeResult decode(const Forest& forest, const DecodeProblem& problem, const DecodeTensors& tensors, unsigned threads) {
    std::vector<std::int32_t> all;
    for (std::int32_t r = 0; r < forest.request_capacity(); ++r)
        if (forest.request_alive(r)) all.push_back(r);
    return decode(forest, problem, tensors, all, threads);
}

}  // namespace sapwood::oracle
