// SPDX-License-Identifier: Apache-2.0
// How evenly a list of key blocks, longest first, keeps a device's multiprocessors at work.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "packed_abi.h"
#include "sapwood/packed.h"

namespace sapwood {

/// Costs are in steps: a row tile of one query head. An item is a block, or a part of one, of one KV head.
class BackwardBalance {
public:
    /// `head_bytes`: what the items of a KV head share in L2, see choose_section.
    BackwardBalance(const PackedProblem& problem, std::int64_t head_bytes, int multiprocessors)
        : problem_(problem), head_bytes_(head_bytes), multiprocessors_(multiprocessors) {}

    /// Steps until the last multiprocessor is done if no part has more than `longest` tiles.
    double makespan(std::span<const abi::KeyBlock> blocks, std::int64_t longest);
    /// `rule`, or a longer part with which the last one is done earlier by more than the costs are known to.
    std::int64_t choose(std::span<const abi::KeyBlock> blocks, std::int64_t rule);

private:
    const PackedProblem& problem_;
    std::int64_t head_bytes_;
    int multiprocessors_;
    std::vector<std::int32_t> whole_, parts_;  // how many blocks and parts there are of each length
    std::vector<double> busy_;                 // until when, a heap: the first to be free on top
};

}  // namespace sapwood
