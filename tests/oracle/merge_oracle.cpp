// SPDX-License-Identifier: Apache-2.0
#include "oracle/merge_oracle.h"

#include <cmath>
#include <limits>

namespace sapwood::oracle {

State merge(std::span<const State> parts, std::size_t dim, double base) {
    constexpr double kInfinity = std::numeric_limits<double>::infinity();
    State merged = {std::vector<double>(dim, 0.0), -kInfinity};
    for (const State& part : parts)
        if (!std::isinf(part.lse)) merged.lse = std::max(merged.lse, part.lse);
    if (std::isinf(merged.lse)) return merged;
    const double top = merged.lse;
    double sum = 0;
    for (const State& part : parts)
        if (!std::isinf(part.lse)) sum += std::pow(base, part.lse - top);
    for (const State& part : parts) {
        if (std::isinf(part.lse)) continue;
        const double weight = std::pow(base, part.lse - top) / sum;
        for (std::size_t i = 0; i < dim; ++i) merged.out[i] += weight * part.out[i];
    }
    merged.lse = top + std::log(sum) / std::log(base);
    return merged;
}

}  // namespace sapwood::oracle
