// SPDX-License-Identifier: Apache-2.0
// Merging of partial results from its definition, in fp64; shares nothing with lib/.
#pragma once

#include <span>
#include <vector>

namespace sapwood::oracle {

/// The result of one row and head: `out` has as many values as the parts, 0 for a row all of whose parts are empty.
struct State {
    std::vector<double> out;
    double lse = 0;
};

/// A part whose lse is -inf or +inf is empty, whatever its out holds. `base` is that of the logarithms: e or 2.
State merge(std::span<const State> parts, std::size_t dim, double base);

}  // namespace sapwood::oracle
