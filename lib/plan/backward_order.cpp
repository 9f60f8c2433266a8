// SPDX-License-Identifier: Apache-2.0
// The list by rows: blocks of late rows first, long ones cut at the same rows. What adds to a tile of dQ then does so at about the
// same time, while the tile is in L2. And if additions are to have a fixed order, hardly any waits for its turn:
// * Rows are walked upwards, and blocks are drawn by their first row tile, the last one first. Blocks that begin together so meet
//   the rows that they share one after the other, in the order in which they were drawn: the keys nearest to a row come first.
// * Of blocks that share rows the earlier must not be the longer one, for it comes to the next query head later. So cuts are where
//   few short blocks lie across: where responses end.
// Parts are shorter than those of longest first, because short ones are not kept for the end.
#include <algorithm>
#include <utility>

#include "plan/backward_list.h"

namespace sapwood {
namespace {

constexpr auto kTile = static_cast<std::int32_t>(abi::kRowTile);

}  // namespace

void BackwardList::order_by_rows(std::int64_t limit) {
    choose_row_cuts(limit);
    cut(limit, [&](std::size_t block, std::vector<unsigned>& ends) { end_at_row_cuts(block, limit, ends); });
    blocks = unsorted_;
    const auto first_row = [&](const abi::KeyBlock& block) {  // what no row sees comes last
        return block.tiles == 0 ? -1 : spans[block.span_begin].row_begin;
    };
    std::sort(blocks.begin(), blocks.end(), [&](const abi::KeyBlock& a, const abi::KeyBlock& b) {
        return std::pair(first_row(a), a.key_begin) > std::pair(first_row(b), b.key_begin);
    });
}

void BackwardList::choose_row_cuts(std::int64_t limit) {
    crossings_.assign(static_cast<std::size_t>(row_tiles_) + 1, 0);
    for (std::size_t b = 0; b < unsorted_.size(); ++b) {
        const abi::KeyBlock& block = unsorted_[b];
        if (block.tiles == 0 || block.tiles > limit) continue;
        const std::size_t end = b + 1 < unsorted_.size() ? unsorted_[b + 1].span_begin : spans.size();
        const abi::RowSpan &first = spans[block.span_begin], &last = spans[end - 1];
        ++crossings_[static_cast<std::size_t>(first.row_begin / kTile) + 1];
        --crossings_[static_cast<std::size_t>(last.row_begin / kTile) + last.tiles];
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
