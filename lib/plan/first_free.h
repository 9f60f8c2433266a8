// SPDX-License-Identifier: Apache-2.0
// Workers that draw work as they become free.
#pragma once

#include <cstddef>
#include <vector>

namespace sapwood {

/// `free`: a heap of the times at which workers are free, the first on top; all alike is one. That worker is free at `until`, which
/// is not earlier.
inline void occupy_first(std::vector<double>& free, double until) {
    std::size_t at = 0;
    for (std::size_t child = 1; child < free.size(); child = 2 * at + 1) {
        if (child + 1 < free.size() && free[child + 1] < free[child]) ++child;
        if (free[child] >= until) break;
        free[at] = free[child];
        at = child;
    }
    free[at] = until;
}

}  // namespace sapwood
