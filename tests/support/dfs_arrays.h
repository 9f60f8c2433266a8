// SPDX-License-Identifier: Apache-2.0
// Trees as FlashAttention-2's tree mask knows them.
#pragma once

#include <algorithm>
#include <cstdint>
#include <span>
#include <vector>

#include "sapwood/packed.h"

namespace sapwood::support {

/// The arrays of depth-first trees, and the sequences that their roots begin.
struct DfsArrays {
    std::vector<std::int32_t> cu, start_q, end_k;

    Pack pack() const { return Pack::from_cu_seqlens(cu, cu, {.causal = true, .dfs_arrays = true}); }
};

/// Nodes are counted from `first` in every tree; `global`: on from tree to tree.
inline DfsArrays arrays_of(std::span<const Segment> segments, std::int32_t first = 0, bool global = false) {
    DfsArrays arrays;
    arrays.cu.push_back(0);
    std::vector<std::int32_t> node(segments.size()), last(segments.size());  // own number, the largest of the subtree
    std::int32_t next = first, tokens = 0;
    for (std::size_t i = 0; i < segments.size(); ++i) {
        if (segments[i].parent < 0) {
            if (i > 0) arrays.cu.push_back(tokens);
            if (!global) next = first;
        }
        node[i] = last[i] = next++;
        tokens += static_cast<std::int32_t>(segments[i].tokens);
    }
    arrays.cu.push_back(tokens);
    for (std::size_t i = segments.size(); i-- > 0;) {
        if (segments[i].parent < 0) continue;
        std::int32_t& above = last[static_cast<std::size_t>(segments[i].parent)];
        above = std::max(above, last[i]);
    }
    for (std::size_t i = 0; i < segments.size(); ++i) {
        const auto count = static_cast<std::size_t>(segments[i].tokens);
        arrays.start_q.insert(arrays.start_q.end(), count, node[i]);
        arrays.end_k.insert(arrays.end_k.end(), count, last[i]);
    }
    return arrays;
}

}  // namespace sapwood::support
