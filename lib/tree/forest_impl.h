// SPDX-License-Identifier: Apache-2.0
// Storage of a Forest, shared with the planner. Links are kept per node, so that updates cost what they change; depth-first order
// is made on demand by the planner.
#pragma once

#include <cstdint>
#include <map>
#include <vector>

#include "sapwood/forest.h"

namespace sapwood {

struct Forest::Impl {
    static constexpr std::int32_t kDead = -2;  // node_of_request of a removed request

    std::vector<Node> nodes;
    std::vector<std::uint8_t> alive;
    std::vector<std::int32_t> child_count, request_count;  // of a node
    std::vector<std::int32_t> request_node;                // kNoNode = empty path, kDead = removed
    std::vector<std::int32_t> free_nodes, free_requests;
    struct Draft {
        DraftMask mask;
        std::int32_t first_request;
    };
    std::map<std::int32_t, Draft> drafts;  // by node
    std::int32_t live_nodes = 0, live_requests = 0;
    std::int64_t tokens = 0;

    /// What has changed: a plan compares these with what it saw. `structure` counts everything but growth of a node's length;
    /// growth is journalled as node ids, one entry a token run, so that a plan can patch its list instead of planning anew.
    std::uint64_t identity = 0;  // of the object whose journal this is
    std::uint64_t structure = 0;
    std::vector<std::int32_t> grown;  // node ids in order of growth, duplicates allowed
    std::vector<std::int32_t> grown_by;

    static void check_run(std::size_t id, const Node& node);  // throws unless its positions are in range
    void check_node_id(std::int32_t id, const char* asked) const;
    void check_request_id(std::int32_t id, const char* asked) const;
    /// Throws if the node is a draft, which owns its requests and its length.
    void check_no_draft(std::int32_t id, const char* asked) const;
    std::int32_t take_requests(std::int32_t count);  // neighbouring ids
    void grow(std::int32_t node, std::int64_t count);
    static std::uint64_t next_identity();
};

}  // namespace sapwood
