// SPDX-License-Identifier: Apache-2.0
#include "support/compare.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <limits>
#include <vector>

#include "support/half.h"

namespace sapwood::support {

static constexpr double kInfinity = std::numeric_limits<double>::infinity();

double relative_error(std::span<const double> got, std::span<const double> want) {
    double difference = 0, norm = 0;
    for (std::size_t i = 0; i < want.size(); ++i) {
        if (std::isnan(got[i]) || std::isnan(want[i])) return kInfinity;
        difference += (got[i] - want[i]) * (got[i] - want[i]);
        norm += want[i] * want[i];
    }
    if (std::isnan(difference)) return kInfinity;
    return norm > 0 ? std::sqrt(difference / norm) : std::sqrt(difference);
}

double max_abs_error(std::span<const double> got, std::span<const double> want) {
    double worst = 0;
    for (std::size_t i = 0; i < want.size(); ++i) {
        if (std::isnan(got[i]) || std::isnan(want[i])) return kInfinity;
        if (got[i] != want[i]) worst = std::max(worst, std::abs(got[i] - want[i]));
    }
    return worst;
}

double tolerance(DType dtype) { return dtype == DType::fp16 ? 1e-3 : 8e-3; }

bool Comparison::passes(DType dtype) const {
    return nan_count == 0 && out_error <= tolerance(dtype) && worst_request <= 4 * tolerance(dtype) && lse_error <= 1e-3;
}

std::string Comparison::to_string() const {
    char text[160];
    std::snprintf(text, sizeof text, "out error %.2e (worst request %.2e), lse error %.2e, %lld NaN, %lld requests", out_error,
                  worst_request, lse_error, static_cast<long long>(nan_count), static_cast<long long>(requests));
    return text;
}

Comparison compare(const DecodeProblem& problem, const DecodeTensors& tensors, const oracle::DecodeResult& want) {
    const std::int64_t dim = problem.head_dim_v ? problem.head_dim_v : problem.head_dim, heads = problem.q_heads;
    const std::int64_t head_stride = tensors.out_head_stride ? tensors.out_head_stride : dim;
    const std::int64_t request_stride = tensors.out_request_stride ? tensors.out_request_stride : heads * dim;
    const auto* out = static_cast<const std::uint16_t*>(tensors.out);
    Comparison result;
    result.requests = static_cast<std::int64_t>(want.requests.size());
    std::vector<double> got(want.out.size()), got_lse(tensors.lse ? want.lse.size() : 0);
    for (std::size_t i = 0; i < want.requests.size(); ++i) {
        const std::int64_t request = want.requests[i], row = static_cast<std::int64_t>(i) * heads;
        for (std::int64_t h = 0; h < heads; ++h) {
            for (std::int64_t d = 0; d < dim; ++d) {
                const double x = widen(problem.dtype, out[request * request_stride + h * head_stride + d]);
                got[static_cast<std::size_t>((row + h) * dim + d)] = x;
                result.nan_count += std::isnan(x);
            }
            if (tensors.lse) {
                const double x = tensors.lse[request * heads + h];
                got_lse[static_cast<std::size_t>(row + h)] = x;
                result.nan_count += std::isnan(x);
            }
        }
        const auto from = static_cast<std::size_t>(row * dim), size = static_cast<std::size_t>(heads * dim);
        result.worst_request = std::max(
            result.worst_request, relative_error(std::span(got).subspan(from, size), std::span(want.out).subspan(from, size)));
    }
    result.out_error = relative_error(got, want.out);
    if (tensors.lse) result.lse_error = max_abs_error(got_lse, want.lse);
    return result;
}

std::vector<std::int32_t> spread(std::int32_t n, std::int32_t count) {
    std::vector<std::int32_t> picked;
    count = std::min(n, count);
    for (std::int64_t i = 0; i < count; ++i) picked.push_back(static_cast<std::int32_t>(i * n / count));
    return picked;
}

}  // namespace sapwood::support
