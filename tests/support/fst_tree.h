// SPDX-License-Identifier: Apache-2.0
// FST's published tree and the three tensors that it builds for its kernel, written anew from their description (semantics, 3.4).
#pragma once

#include <algorithm>
#include <cstdint>
#include <set>
#include <vector>

namespace sapwood::support {

/// Level 0 has `topk` roots; in each level the first half of the nodes have `topk` children each. Nodes in level order.
inline std::vector<std::int32_t> fst_parents(std::int32_t depth, std::int32_t topk = 4) {
    std::vector<std::int32_t> parents(static_cast<std::size_t>(topk), -1);
    std::int32_t begin = 0, size = topk;
    for (std::int32_t level = 1; level <= depth; ++level) {
        const std::int32_t next = topk * (size / 2);
        for (std::int32_t i = 0; i < next; ++i) parents.push_back(begin + i / topk);
        begin += size;
        size = next;
    }
    return parents;
}

struct FstTensors {
    std::vector<std::int64_t> ancestor_idx;   // [blocks, max_ancestors]
    std::vector<std::uint8_t> ancestor_mask;  // [blocks, block_m, max_ancestors]
    std::vector<std::int64_t> leaf_idx;       // [blocks, block_m]
    std::size_t most_ancestors = 0;           // unique ones of a block
};

/// `rows` may be more than the tree has nodes: pad rows see themselves, as the published planner has it.
inline FstTensors fst_tensors(const std::vector<std::int32_t>& parents, std::int32_t rows, std::int32_t block_m,
                              std::int32_t max_ancestors) {
    FstTensors made;
    const std::int32_t blocks = (rows + block_m - 1) / block_m;
    made.ancestor_idx.assign(static_cast<std::size_t>(blocks * max_ancestors), -1);
    made.ancestor_mask.assign(static_cast<std::size_t>(blocks) * block_m * max_ancestors, 0);
    made.leaf_idx.assign(static_cast<std::size_t>(blocks * block_m), -1);
    const auto parent = [&](std::int32_t node) {
        return node < std::ssize(parents) ? parents[static_cast<std::size_t>(node)] : -1;
    };
    for (std::int32_t b = 0; b < blocks; ++b) {
        std::set<std::int32_t> unique;
        for (std::int32_t r = b * block_m; r < std::min(rows, (b + 1) * block_m); ++r) {
            for (std::int32_t a = parent(r); a >= 0; a = parent(a)) unique.insert(a);
        }
        made.most_ancestors = std::max(made.most_ancestors, unique.size());
        std::size_t j = 0;
        for (const std::int32_t a : unique) {
            if (j == static_cast<std::size_t>(max_ancestors)) break;
            made.ancestor_idx[static_cast<std::size_t>(b * max_ancestors) + j++] = a;
        }
        for (std::int32_t r = b * block_m; r < std::min(rows, (b + 1) * block_m); ++r) {
            if (!unique.contains(r)) made.leaf_idx[static_cast<std::size_t>(r)] = r;
            // Self is part of the row's lineage: a row that is another's ancestor sees itself through the ancestor tile.
            for (std::int32_t a = r; a >= 0; a = parent(a)) {
                const auto found = unique.find(a);
                if (found == unique.end()) continue;
                const auto at = std::distance(unique.begin(), found);
                made.ancestor_mask[static_cast<std::size_t>(r) * max_ancestors + static_cast<std::size_t>(at)] = 1;
            }
        }
    }
    return made;
}

}  // namespace sapwood::support
