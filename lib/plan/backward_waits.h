// SPDX-License-Identifier: Apache-2.0
// How long a backward pass takes whose additions to dQ, dK and dV have a fixed order, waits for turns included.
#pragma once

#include <cstdint>
#include <vector>

#include "plan/backward_list.h"
#include "plan/row_layout.h"
#include "sapwood/packed.h"

namespace sapwood {

/// Items in the order of their tickets, each to the multiprocessor that is free first. What L2 does not hold is
/// RowLayout::slowdown: measured on an H100, the multiprocessors ask for twice what DRAM has, so layouts are to keep to L2 in the
/// first place.
class BackwardWaits {
public:
    BackwardWaits(const PackedProblem& problem, int multiprocessors) : problem_(problem), multiprocessors_(multiprocessors) {}

    /// Steps (a row tile of one query head) until the last multiprocessor is done. In about 100 us, whatever the list's length:
    /// rows are looked at in cells of as many tiles as that takes.
    double makespan(const BackwardList& list, const RowLayout& layout);

private:
    double walk(const BackwardList& list, const abi::KeyBlock& block, std::int32_t first_head, double begin);

    const PackedProblem& problem_;
    int multiprocessors_;
    std::int32_t heads_ = 1;             // of an item
    std::int32_t cell_ = 1, cells_ = 0;  // in row tiles; of one head
    std::vector<double> added_;          // when the tile with which a cell begins was last added to, by head and cell
    std::vector<double> parts_;          // when dK and dV of a slot were, by slot and KV head
    std::vector<double> free_;           // multiprocessors, a heap
};

}  // namespace sapwood
