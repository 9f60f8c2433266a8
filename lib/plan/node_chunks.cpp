// SPDX-License-Identifier: Apache-2.0
#include "plan/node_chunks.h"

#include <algorithm>
#include <limits>

#include "abi.h"

namespace sapwood {
namespace {

constexpr std::size_t kMost = abi::kChunkTokens;
// Of copying a chunk, in products of a unit of rows with one.
constexpr double kCopy = 0.5;

/// A node, the rows that see it, and its place among those that only some rows see.
struct Seen {
    std::int32_t node, row_begin, row_end, some;
};

bool bit(const StaticTree::Block& block, std::int32_t row, std::int32_t some) {
    return (block.bits[static_cast<std::size_t>(row * block.words + some / 32)] >> (some % 32) & 1) != 0;
}

std::vector<Seen> seen_nodes(const StaticTree::Block& block, std::int32_t rows) {
    std::vector<Seen> seen;
    seen.reserve(block.all.size() + block.some.size());
    for (const std::int32_t node : block.all) seen.push_back({node, 0, rows, -1});
    for (std::int32_t i = 0; i < std::ssize(block.some); ++i) {
        Seen one = {block.some[static_cast<std::size_t>(i)], 0, rows, i};
        while (!bit(block, one.row_begin, i)) ++one.row_begin;
        while (!bit(block, one.row_end - 1, i)) --one.row_end;
        seen.push_back(one);
    }
    std::inplace_merge(seen.begin(), seen.begin() + std::ssize(block.all), seen.end(),
                       [](const Seen& a, const Seen& b) { return a.node < b.node; });
    return seen;
}

/// How many nodes the last chunk of the first i has, for each i, where these are cut at least cost.
std::vector<std::size_t> cuts(const std::vector<Seen>& seen, std::int32_t group, std::int32_t unit_rows) {
    std::vector<double> cost(seen.size() + 1, 0);
    std::vector<std::size_t> last(seen.size() + 1, 0);
    for (std::size_t i = 1; i <= seen.size(); ++i) {
        cost[i] = std::numeric_limits<double>::infinity();
        std::int32_t row_begin = seen[i - 1].row_begin, row_end = seen[i - 1].row_end;
        for (std::size_t count = 1; count <= std::min(i, kMost); ++count) {
            row_begin = std::min(row_begin, seen[i - count].row_begin), row_end = std::max(row_end, seen[i - count].row_end);
            const std::int32_t units = (row_end * group + unit_rows - 1) / unit_rows - row_begin * group / unit_rows;
            const double all = cost[i - count] + kCopy + units;
            if (all <= cost[i]) cost[i] = all, last[i] = count;
        }
    }
    return last;
}

}  // namespace

NodeChunks node_chunks(const StaticTree::Block& block, std::int32_t rows, std::int32_t group, std::int32_t unit_rows) {
    const std::vector<Seen> seen = seen_nodes(block, rows);
    const std::vector<std::size_t> last = cuts(seen, group, unit_rows);
    NodeChunks made;
    for (const Seen& one : seen) made.nodes.push_back(one.node);
    for (std::size_t end = seen.size(); end > 0; end -= last[end]) {
        NodeChunk& chunk = made.chunks.emplace_back();
        chunk.begin = static_cast<std::int32_t>(end - last[end]), chunk.count = static_cast<std::int32_t>(last[end]);
        chunk.row_begin = rows;
        for (std::size_t i = end - last[end]; i < end; ++i) {
            chunk.row_begin = std::min(chunk.row_begin, seen[i].row_begin);
            chunk.row_end = std::max(chunk.row_end, seen[i].row_end);
            chunk.masked = chunk.masked || seen[i].some >= 0;
        }
        made.masked += chunk.masked;
    }
    std::reverse(made.chunks.begin(), made.chunks.end());

    made.bits.assign(static_cast<std::size_t>(rows) * static_cast<std::size_t>(made.masked), 0);
    std::int32_t column = 0;
    for (const NodeChunk& chunk : made.chunks) {
        if (!chunk.masked) continue;
        for (std::int32_t row = 0; row < rows; ++row) {
            std::uint16_t& bits = made.bits[static_cast<std::size_t>(row * made.masked + column)];
            for (std::int32_t i = 0; i < chunk.count; ++i) {
                const std::int32_t some = seen[static_cast<std::size_t>(chunk.begin + i)].some;
                if (some < 0 || bit(block, row, some)) bits = static_cast<std::uint16_t>(bits | 1u << i);
            }
        }
        ++column;
    }
    return made;
}

}  // namespace sapwood
