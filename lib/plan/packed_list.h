// SPDX-License-Identifier: Apache-2.0
// Tile lists of a pack: for each block of query rows the KV tiles that some row of it sees, as spans that are seen whole (nothing
// to compare) and spans that are seen in part. O(blocks + spans + runs) in time and size, whatever the number of tokens.
#pragma once

#include <cstdint>
#include <vector>

#include "packed_abi.h"
#include "sapwood/packed.h"

namespace sapwood {

/// Counting sort by tiles, descending; blocks of equal length stay in order, so that neighbours share what they read.
template <class Block>
void sort_longest_first(const std::vector<Block>& from, std::vector<Block>& to, std::vector<std::uint32_t>& counts) {
    unsigned most = 0;
    for (const Block& block : from) most = block.tiles > most ? block.tiles : most;
    counts.assign(most + 2, 0);
    for (const Block& block : from) ++counts[most - block.tiles + 1];
    for (std::size_t i = 1; i < counts.size(); ++i) counts[i] += counts[i - 1];
    to.resize(from.size());
    for (const Block& block : from) to[counts[most - block.tiles]++] = block;
}

struct PackedList {
    std::vector<abi::QueryBlock> blocks;  // longest first
    std::vector<abi::KeySpan> spans;
    std::vector<abi::KeyRun> runs;  // the pack's
    std::int64_t tiles = 0, partial_tiles = 0;

    /// Rebuilds everything; keeps the vectors' memory. Tiles begin where they are needed, not on multiples of block_kv: each block
    /// is covered from its last visible key backwards, which takes the fewest tiles there are.
    void build(const Pack& pack, std::int32_t block_q, std::int32_t block_kv);

    std::int64_t bytes() const {
        return static_cast<std::int64_t>(blocks.size() * sizeof(abi::QueryBlock) + spans.size() * sizeof(abi::KeySpan) +
                                         runs.size() * sizeof(abi::KeyRun));
    }

private:
    /// What the rows of one block see of a run: some row sees each key of [begin, end), every row those of [whole_begin,
    /// whole_end).
    struct Piece {
        std::int32_t begin, end, whole_begin, whole_end;
        std::uint32_t run;
    };
    void cover(std::int32_t block_kv);

    std::vector<std::uint32_t> active_;  // runs that a row from the present block on may see
    std::vector<Piece> pieces_;          // ascending by key
    std::vector<abi::QueryBlock> unsorted_;
    std::vector<std::uint32_t> counts_;
};

}  // namespace sapwood
