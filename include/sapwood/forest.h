// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "sapwood/draft.h"

namespace sapwood {

/// One node of a forest of KV: a run of tokens whose keys and values are shared by every request attached at or below it.
///
/// KV positions: the tokens of a node are positions kv_begin, kv_begin + 1, …. With contiguous KV (page_size 0) a position is the
/// row of the K and V tensors. With a page table, position p is row page_table[p / page_size] * page_size + p % page_size; the
/// table may be in any order and lives where the tensors live.
struct Node {
    std::int32_t parent = -1;   ///< id (index) of the parent, -1 for a root; several roots are legal, in any order
    std::int64_t tokens = 0;    ///< may be 0
    std::int64_t kv_begin = 0;  ///< position of the first token
};

/// Where Forest::add_draft put a draft: its node, and the requests first_request, first_request + 1, … of its rows.
struct DraftIds {
    std::int32_t node = -1, first_request = -1;
};

/// Trees of KV nodes with requests attached: what decode attends over. A request sees every token of its node and of all ancestors.
///
/// Value type with host memory only. Node and request ids are stable: removing one leaves the others' ids alone, and its id may be
/// given out again by a later add. Request ids are the rows of Q, out and lse.
class Forest {
public:
    static constexpr std::int32_t kNoNode = -1;  ///< a request attached here has an empty path: out 0, lse -inf

    Forest();
    ~Forest();
    Forest(const Forest&);
    Forest(Forest&&) noexcept;
    Forest& operator=(const Forest&);
    Forest& operator=(Forest&&) noexcept;

    /// A forest with one request on every leaf (a node that is no node's parent), requests numbered in node order.
    /// Throws Error{kInvalidForest} naming the node: parent out of range, cycle, negative or overflowing length.
    static Forest from_nodes(std::span<const Node> nodes);
    /// The same with requests given: request i is attached to node request_nodes[i] (or kNoNode); several may share a node.
    static Forest from_nodes(std::span<const Node> nodes, std::span<const std::int32_t> request_nodes);

    /// Updates: cheap, no rebuild. Plans made from this forest take them over with DecodePlan::update.
    std::int32_t add_node(const Node& node);
    std::int32_t add_request(std::int32_t node);
    void append_tokens(std::int32_t node, std::int64_t count = 1);
    /// One more token (at the next KV position) on the node of every live request; a node with several requests gains one token.
    void append_token_to_each_request();
    void move_request(std::int32_t request, std::int32_t node);
    void remove_request(std::int32_t request);
    /// Removes a node that has neither children nor requests.
    void remove_node(std::int32_t node);

    /// Verify: a draft of mask.columns() tokens at kv_begin behind the path of `parent` (kNoNode: behind nothing), with a request
    /// for each row of the mask. A row sees all of the path, and of the draft what the mask says; several drafts may share a
    /// prefix. Nothing else can be attached to a draft.
    DraftIds add_draft(std::int32_t parent, std::int64_t kv_begin, const DraftMask& mask);
    /// The next step's draft in place of this one: the same rows, any number of tokens, the same requests.
    void replace_draft(std::int32_t node, std::int64_t kv_begin, const DraftMask& mask);
    void remove_draft(std::int32_t node);  ///< with its requests
    /// Null if the node is no draft.
    const DraftMask* draft_mask(std::int32_t node) const noexcept;
    std::int32_t draft_first_request(std::int32_t node) const;

    /// Ids run from 0 to *_capacity() - 1; removed ones in between are not alive.
    std::int32_t node_capacity() const noexcept;
    std::int32_t request_capacity() const noexcept;  ///< rows that Q, out and lse must have
    bool node_alive(std::int32_t node) const noexcept;
    bool request_alive(std::int32_t request) const noexcept;
    const Node& node(std::int32_t id) const;
    std::int32_t request_node(std::int32_t request) const;  ///< kNoNode for an empty path
    std::int32_t live_nodes() const noexcept;
    std::int32_t live_requests() const noexcept;

    std::int64_t total_tokens() const noexcept;            ///< over live nodes
    std::int64_t path_tokens(std::int32_t request) const;  ///< keys that the request sees
    /// Checks a page table on the host: every position of every node inside `pages`, every entry in [0, pool_pages).
    /// Throws Error{kInvalidArgument} naming node, position and entry.
    void check_pages(std::span<const std::int32_t> pages, std::int64_t pool_pages, std::int32_t page_size) const;

    /// A picture of the trees for people, at most `max_lines` lines.
    std::string to_string(std::int32_t max_lines = 24) const;

    struct Impl;
    const Impl& impl() const noexcept { return *impl_; }

private:
    std::unique_ptr<Impl> impl_;
};

}  // namespace sapwood
