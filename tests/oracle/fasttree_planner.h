// SPDX-License-Identifier: Apache-2.0
// The published greedy planner of FastTree (PanZaifeng/FastTree-Artifact @167928b, MLSys'25), written from its description: what
// Sapwood's cover is compared with. Beyond the original it takes several roots and requests on inner nodes.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <vector>

namespace sapwood::oracle {

struct FastTreeNode {
    std::int32_t parent = -1;  // before its children
    std::int64_t tokens = 0;
    std::vector<std::int32_t> requests;  // attached to the node itself
};

using PerPhase = std::array<std::int64_t, 2>;

struct FastTreeSettings {
    double alpha = 0.66, beta = 0.33, gamma = 0.1;
    std::int64_t kv_heads = 1, group = 1;
    PerPhase q_tile = {64, 16}, kv_tile = {32, 32};
    PerPhase kv_split = {1024, 128};
    PerPhase grow_split_below = {132, 528}, change_tile_below = {132, 132};  // para_threshs1 and 2

    static FastTreeSettings published(std::int64_t q_heads, std::int64_t kv_heads);
};

struct FastTreePlan {
    std::vector<bool> merged;                         // by node: carries its parent's KV too
    std::vector<std::vector<std::int32_t>> requests;  // by node: whom it serves
    std::vector<std::vector<std::int32_t>> kv_nodes;  // by node: whose KV it loads, root to leaf
    std::vector<PerPhase> parallelism;                // by round
    PerPhase q_tile{}, kv_split{};                    // the last ones
    PerPhase vnodes{}, longest{};                     // longest: most requests of a vnode
    std::int64_t mid_rows = 0;

    std::int64_t merged_children() const;
};

FastTreePlan plan_fasttree(std::span<const FastTreeNode> nodes, const FastTreeSettings& settings);

}  // namespace sapwood::oracle
