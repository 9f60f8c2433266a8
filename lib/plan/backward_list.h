// SPDX-License-Identifier: Apache-2.0
// Tile lists of a pack seen from its keys: for each block of keys the tiles of query rows that see some of them. Rows lie on a grid
// of row tiles, because the sums of dQ do.
#pragma once

#include <algorithm>
#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "packed_abi.h"
#include "plan/packed_list.h"
#include "sapwood/packed.h"

namespace sapwood {

/// Parts that a block is cut into if none is to have more than `longest` tiles.
inline std::int64_t parts_of(const abi::KeyBlock& block, std::int64_t longest) {
    return std::max<std::int64_t>(1, (block.tiles + longest - 1) / longest);
}

/// In which order blocks are drawn; see backward_order.cpp for what suits additions in a fixed order.
enum class BlockOrder { longest_first, by_rows, there_and_back };

struct BackwardList {
    std::vector<abi::KeyBlock> blocks;  // in their order
    std::vector<abi::RowSpan> spans;
    std::vector<abi::KeyRun> runs;    // the pack's
    std::vector<abi::KeySlot> slots;  // blocks in several parts
    // Once turns are numbered: of each block where its own begin, and one for each of its tiles.
    std::vector<abi::BlockTurns> block_turns;
    std::vector<std::uint32_t> turns;
    std::vector<std::uint32_t> row_additions;  // to the dQ of a row tile, as many as blocks have it
    std::int64_t tiles = 0, partial_tiles = 0;

    /// Of a block's longest part, in tiles, given all blocks and their tiles in all.
    using Longest = std::function<std::int64_t(std::span<const abi::KeyBlock> blocks, std::int64_t tiles)>;
    /// Rebuilds everything; keeps the vectors' memory. Long blocks are cut into parts: the keys of a prompt are seen by every
    /// response, and one block would still be at them when all else is done. (None is there and back.) `sums_for_all`: whole ones
    /// have a slot too, because several items add to each.
    void build(const Pack& pack, std::int32_t block_keys, const Longest& longest, BlockOrder order = BlockOrder::longest_first,
               bool sums_for_all = false);
    /// For additions in a fixed order: how many come before each.
    void number_turns();

    std::int64_t bytes() const {
        return static_cast<std::int64_t>(blocks.size() * sizeof(abi::KeyBlock) + spans.size() * sizeof(abi::RowSpan) +
                                         runs.size() * sizeof(abi::KeyRun) + slots.size() * sizeof(abi::KeySlot) +
                                         block_turns.size() * sizeof(abi::BlockTurns) + turns.size() * sizeof(turns[0]) +
                                         row_additions.size() * sizeof(row_additions[0]));
    }

private:
    /// Rows [begin, end) see some of the block's keys in one run.
    struct Piece {
        std::int32_t begin, end;
        std::uint32_t run;
    };
    void cover(std::int32_t whole_begin, std::int32_t whole_end);
    void emit(std::int32_t first_tile, std::int32_t end_tile, bool whole);
    void count_additions();

    /// Of a block that is too long, given its index: where its parts end, in tiles.
    using PartEnds = std::function<void(std::size_t block, std::vector<unsigned>& ends)>;
    void cut(std::int64_t limit, const PartEnds& part_ends, bool all = false);

    // --- the other orders (backward_order.cpp)
    void order_by_rows(std::int64_t limit, bool sums_for_all);
    void order_there_and_back(bool sums_for_all);
    void sort_late_rows_first();
    std::int64_t first_row(const abi::KeyBlock& block) const;
    std::int64_t end_row(const abi::KeyBlock& block) const;
    void choose_row_cuts(std::int64_t limit);
    void end_at_row_cuts(std::size_t block, std::int64_t limit, std::vector<unsigned>& ends) const;

    std::int64_t row_tiles_ = 0;
    std::vector<Piece> pieces_;
    std::vector<abi::KeyBlock> unsorted_;
    std::vector<std::int32_t> row_cuts_;   // row tiles at which long blocks are cut, ascending
    std::vector<std::int32_t> crossings_;  // short blocks with rows on both sides of a row tile's beginning
    std::vector<unsigned> ends_;
    std::vector<std::uint32_t> counts_;
};

}  // namespace sapwood
