// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "sapwood/decode.h"

namespace sapwood {

/// A tree whose nodes are the queries (FST's static speculative trees): node i sees its ancestors, itself, and a prefix that the
/// call gives. Host data.
class StaticTree {
public:
    /// parents[i] is a node, in any order; -1 is a root, of which there may be several. Throws Error{kInvalidArgument} naming the
    /// node: a parent out of range, or a node that is its own ancestor.
    static StaticTree from_parents(std::span<const std::int32_t> parents);

    /// FST's own three tensors, on the host, for `rows` queries in blocks of `block_m`: ancestor_idx [blocks, max_ancestors],
    /// ancestor_mask [blocks, block_m, max_ancestors] (bytes, non-zero = seen), leaf_idx [blocks, block_m]. Indices are nodes
    /// 0..rows - 1, and -1 is a pad: give them without the prefix length added, which is the call's affair (shifted pads would name
    /// a key of the prefix). A node that is listed as ancestor and as leaf of a row is seen once. Throws Error{kInvalidArgument}.
    static StaticTree from_fst(std::span<const std::int64_t> ancestor_idx, std::span<const std::uint8_t> ancestor_mask,
                               std::span<const std::int64_t> leaf_idx, std::int32_t rows, std::int32_t block_m,
                               std::int32_t max_ancestors);

    std::int32_t rows() const noexcept { return rows_; }
    /// Keys of the tree that a row sees, itself included where it does.
    std::vector<std::int32_t> seen(std::int32_t row) const;

    /// What the rows [begin, end) see: nodes that all of them see, and nodes that some see, each list rising; bit j of
    /// `bits[(row - begin) * words]` is node `some[j]`. A row's own node is never listed; `self` says whether it sees it.
    struct Block {
        std::vector<std::int32_t> all, some;
        std::vector<std::uint32_t> bits;
        std::int32_t words = 0;
        std::vector<std::uint8_t> self;
    };
    void block(std::int32_t begin, std::int32_t end, Block& into) const;

private:
    void find_by_parents(std::int32_t begin, std::int32_t end, Block& into) const;
    void find_by_lists(std::int32_t begin, std::int32_t end, Block& into) const;
    std::int32_t common_ancestor(std::int32_t begin, std::int32_t end) const;

    std::int32_t rows_ = 0;
    std::vector<std::int32_t> parents_, depth_;  // of a tree given by parents
    std::vector<std::int64_t> list_begin_;       // of one given by lists: what row i sees, itself left out
    std::vector<std::int32_t> lists_;
    std::vector<std::uint8_t> sees_itself_;
};

/// Where a tree's queries and keys lie: query row `query_begin` + i, out and lse row likewise, key position `tree_begin` + i for
/// node i; the prefix is `prefix_tokens` positions from `prefix_begin`. Positions are those of Node.
struct StaticTreeSequence {
    std::int64_t prefix_begin = 0, prefix_tokens = 0;
    std::int64_t tree_begin = 0;
    std::int64_t query_begin = 0;
    std::int32_t tree = 0;  ///< which of the call's trees
};

}  // namespace sapwood
