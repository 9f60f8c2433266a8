// SPDX-License-Identifier: Apache-2.0
// How a backward pass is laid out whose blocks meet the rows that they share one after the other.
#pragma once

#include <cstdint>
#include <vector>

#include "plan/backward_list.h"
#include "sapwood/packed.h"

namespace sapwood {

struct RowLayout {
    BlockOrder order = BlockOrder::by_rows;
    std::int32_t bundles = 1;                      // of a KV head's query heads, an item each
    std::int32_t section = 1;                      // bundles that are worked on together, all of a KV head's among them
    double slowdown = 1;                           // by reads that L2 does not hold
    std::int64_t least_steps = 0, most_steps = 0;  // of an item by rows, a step is a row tile of one query head

    /// Row tiles of a block's longest part, given the tiles of one head.
    std::int64_t longest_part(std::int64_t tiles, const PackedProblem& problem, int multiprocessors) const;
};

/// What a row of one query head takes of L2: Q, dO and the sums of dQ.
std::int64_t row_bytes(const PackedProblem& problem);
/// By rows; `bundles` of a KV head's query heads.
RowLayout lay_out_rows(const PackedProblem& problem, std::int32_t bundles);
/// Others that may be better where multiprocessors have few items each. `longest`: row tiles that the longest tree has.
std::vector<RowLayout> short_layouts(const PackedProblem& problem, std::int32_t bundles, std::int64_t longest);

}  // namespace sapwood
