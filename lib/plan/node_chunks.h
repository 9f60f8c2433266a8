// SPDX-License-Identifier: Apache-2.0
// Which ancestors of a block of rows of a static tree are loaded, and multiplied, together.
#pragma once

#include <cstdint>
#include <vector>

#include "sapwood/static_tree.h"

namespace sapwood {

/// Up to abi::kChunkTokens nodes, nodes[begin … begin + count), and the rows of the block of which some sees one of them.
struct NodeChunk {
    std::int32_t begin = 0, count = 0;
    std::int32_t row_begin = 0, row_end = 0;
    bool masked = false;  // some of these rows does not see all of them
};

struct NodeChunks {
    std::vector<std::int32_t> nodes;  // rising
    std::vector<NodeChunk> chunks;
    std::int32_t masked = 0;          // chunks with a mask
    std::vector<std::uint16_t> bits;  // [rows, masked]: which of a masked chunk's nodes a row sees
};

/// What costs least: each chunk is copied, and multiplied by every unit of rows (`unit_rows` query rows, `group` of them a row of
/// the tree) of which some row sees some of it.
NodeChunks node_chunks(const StaticTree::Block& block, std::int32_t rows, std::int32_t group, std::int32_t unit_rows);

}  // namespace sapwood
