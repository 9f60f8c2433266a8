// SPDX-License-Identifier: Apache-2.0
// Orders in which blocks that share rows meet them one after the other.
//
// By rows: blocks of late rows first, long ones cut at the same rows. What adds to a tile of dQ then does so at about the same
// time, while the tile is in L2. And if additions are to have a fixed order, hardly any waits for its turn:
// * Rows are walked upwards, and blocks are drawn by their first row tile, the last one first. Blocks that begin together so meet
//   the rows that they share one after the other, in the order in which they were drawn: the keys nearest to a row come first.
// * Of blocks that share rows the earlier must not be the longer one, for it comes to the next query head later. So cuts are where
//   few short blocks lie across: where responses end.
// Parts are shorter than those of longest first, because short ones are not kept for the end.
//
// There and back: of a sequence every second block, late rows first, and then the others, early rows first, none cut. The first
// half begins at once, each block's rows behind those of the one before, and whoever ends a short block goes on with a long one,
// whose rows the others have left by then. All rows of the heads at work have to stay in L2, so this is for short packs.
#include <algorithm>
#include <utility>

#include "plan/backward_list.h"

namespace sapwood {
namespace {

constexpr auto kTile = static_cast<std::int32_t>(abi::kRowTile);

}  // namespace

/// What no row sees comes last.
std::int64_t BackwardList::first_row(const abi::KeyBlock& block) const {
    return block.tiles == 0 ? -1 : spans[block.span_begin].row_begin;
}
std::int64_t BackwardList::end_row(const abi::KeyBlock& block) const {
    std::size_t span = block.span_begin;
    for (unsigned done = spans[span].tiles; done < block.tiles; done += spans[++span].tiles) {}
    return spans[span].row_begin + static_cast<std::int64_t>(spans[span].tiles) * kTile;
}

void BackwardList::order_by_rows(std::int64_t limit, bool sums_for_all) {
    choose_row_cuts(limit);
    cut(
        limit, [&](std::size_t block, std::vector<unsigned>& ends) { end_at_row_cuts(block, limit, ends); }, sums_for_all);
    sort_late_rows_first();
}

void BackwardList::order_there_and_back(bool sums_for_all) {
    const auto whole = [&](std::size_t block, std::vector<unsigned>& ends) { ends.push_back(unsorted_[block].tiles); };
    if (sums_for_all) cut(0, whole, true);
    sort_late_rows_first();
    std::int64_t last_row = 0;  // of the blocks of the tree
    std::size_t end = blocks.size();
    for (std::size_t i = end; i-- > 0;) {  // no block before i has rows of the tree that ends there
        const abi::KeyBlock& block = blocks[i];
        if (block.tiles > 0) last_row = std::max(last_row, end_row(block));
        if (i > 0 && first_row(blocks[i - 1]) < last_row) continue;
        for (std::size_t j = i; j < end; ++j) unsorted_[(j - i) % 2 == 0 ? i + (j - i) / 2 : end - 1 - (j - i) / 2] = blocks[j];
        end = i;
    }
    blocks.swap(unsorted_);
}

void BackwardList::sort_late_rows_first() {
    blocks = unsorted_;
    std::sort(blocks.begin(), blocks.end(), [&](const abi::KeyBlock& a, const abi::KeyBlock& b) {
        return std::pair(first_row(a), a.key_begin) > std::pair(first_row(b), b.key_begin);
    });
}

void BackwardList::choose_row_cuts(std::int64_t limit) {
    crossings_.assign(static_cast<std::size_t>(row_tiles_) + 1, 0);
    for (const abi::KeyBlock& block : unsorted_) {
        if (block.tiles == 0 || block.tiles > limit) continue;
        ++crossings_[static_cast<std::size_t>(first_row(block) / kTile) + 1];
        --crossings_[static_cast<std::size_t>(end_row(block) / kTile)];
    }
    for (std::size_t i = 1; i < crossings_.size(); ++i) crossings_[i] += crossings_[i - 1];
    row_cuts_.clear();
    for (std::int64_t from = 0; from + limit + limit / 2 < row_tiles_;) {
        std::int64_t best = from + limit;
        for (std::int64_t at = best; at >= from + std::max<std::int64_t>(1, limit / 2); --at)
            if (crossings_[static_cast<std::size_t>(at)] < crossings_[static_cast<std::size_t>(best)]) best = at;
        row_cuts_.push_back(static_cast<std::int32_t>(best));
        from = best;
    }
}

/// Pieces of less than a quarter of the limit stay with their neighbour.
void BackwardList::end_at_row_cuts(std::size_t block, std::int64_t limit, std::vector<unsigned>& ends) const {
    const abi::KeyBlock& whole = unsorted_[block];
    const auto least = static_cast<unsigned>(std::max<std::int64_t>(1, limit / 4));
    unsigned before = 0, last = 0;  // tiles of the spans before this one, and of all parts so far
    auto cut_at = std::upper_bound(row_cuts_.begin(), row_cuts_.end(), spans[whole.span_begin].row_begin / kTile);
    for (std::size_t i = whole.span_begin; before < whole.tiles; before += spans[i++].tiles) {
        const std::int32_t first = spans[i].row_begin / kTile, end = first + static_cast<std::int32_t>(spans[i].tiles);
        for (; cut_at != row_cuts_.end() && *cut_at < end; ++cut_at) {
            const unsigned at = before + static_cast<unsigned>(std::max(*cut_at - first, 0));
            if (at - last < least || whole.tiles - at < least) continue;
            ends.push_back(at);
            last = at;
        }
    }
    ends.push_back(whole.tiles);
}

void BackwardList::number_turns() {
    counts_.assign(static_cast<std::size_t>(row_tiles_), 0);  // additions to a row tile
    std::vector<std::uint32_t> parts(slots.size());
    turns.reserve(static_cast<std::size_t>(tiles));
    for (const abi::KeyBlock& block : blocks) {
        block_turns.push_back(
            {static_cast<unsigned>(turns.size()), block.slot == abi::KeyBlock::kNoSlot ? 0 : parts[block.slot]++});
        std::size_t span = block.span_begin;
        for (unsigned done = 0; done < block.tiles; done += spans[span++].tiles)
            for (unsigned t = 0; t < spans[span].tiles; ++t)
                turns.push_back(counts_[static_cast<std::size_t>(spans[span].row_begin / kTile) + t]++);
    }
}

}  // namespace sapwood
