// SPDX-License-Identifier: Apache-2.0
#include "plan/backward_list.h"

#include <algorithm>
#include <numeric>

namespace sapwood {
namespace {

constexpr auto kTile = static_cast<std::int32_t>(abi::kRowTile);

}  // namespace

void BackwardList::build(const Pack& pack, std::int32_t block_keys, const Longest& longest, BlockOrder order, bool sums_for_all) {
    const std::span<const KeyRun> all = pack.runs();
    const auto keys = static_cast<std::int32_t>(pack.keys());
    runs.clear();
    for (const KeyRun& r : all) runs.push_back({r.key_begin, r.key_end, r.row_begin, r.row_end, r.first, r.last, {}});
    unsorted_.clear();
    spans.clear();
    slots.clear();
    block_turns.clear();
    turns.clear();
    tiles = partial_tiles = 0;
    row_tiles_ = (pack.rows() + kTile - 1) / kTile;
    std::size_t first = 0;  // run that is not wholly behind the block
    for (std::int32_t begin = 0; begin < keys; begin += block_keys) {
        const std::int32_t end = std::min(begin + block_keys, keys);
        while (first < all.size() && all[first].key_end <= begin) ++first;
        pieces_.clear();
        // Rows that see every key: in all runs, and only if these hold all of the block's keys.
        std::int32_t whole_begin = 0, whole_end = KeyRun::kNoLast, held = 0;
        for (std::size_t i = first; i < all.size() && all[i].key_begin < end; ++i) {
            const KeyRun& run = all[i];
            // Key k is seen by rows [k + first, k + last): of neighbouring keys these overlap, so a run's rows are one interval.
            const std::int32_t low = std::max(begin, run.key_begin), high = std::min(end, run.key_end) - 1;
            held += high + 1 - low;
            const std::int32_t top = std::max(run.row_begin, low + run.first), bottom = std::min(run.row_end, high + run.last);
            whole_begin = std::max(whole_begin, std::max(run.row_begin, high + run.first));
            whole_end = std::min(whole_end, std::min(run.row_end, low + run.last));
            if (top < bottom) pieces_.push_back({top, bottom, static_cast<std::uint32_t>(i)});
        }
        if (held < block_keys) whole_end = whole_begin;
        const auto first_span = static_cast<std::uint32_t>(spans.size());
        const std::int64_t before = tiles;
        cover(whole_begin, whole_end);
        unsorted_.push_back({begin, static_cast<unsigned short>(end - begin), abi::KeyBlock::kNoSlot, first_span,
                             static_cast<unsigned>(tiles - before)});
    }
    count_additions();
    const std::int64_t limit = std::max<std::int64_t>(1, longest(unsorted_, tiles));
    if (order == BlockOrder::by_rows) return order_by_rows(limit, sums_for_all);
    if (order == BlockOrder::there_and_back) return order_there_and_back(sums_for_all);
    cut(
        limit,
        [&](std::size_t block, std::vector<unsigned>& ends) {
            const std::int64_t all_tiles = unsorted_[block].tiles, parts = parts_of(unsorted_[block], limit);
            for (std::int64_t p = 1; p <= parts; ++p) ends.push_back(static_cast<unsigned>(p * all_tiles / parts));
        },
        sums_for_all);
    sort_longest_first(unsorted_, blocks, counts_);
}

/// Tiles of the union of the pieces' rows, which begin in ascending order.
void BackwardList::cover(std::int32_t whole_begin, std::int32_t whole_end) {
    const std::int32_t first_whole = (whole_begin + kTile - 1) / kTile, end_whole = std::max(first_whole, whole_end / kTile);
    std::int32_t done = 0;  // tiles below are covered
    for (std::size_t i = 0; i < pieces_.size();) {
        std::int32_t begin = pieces_[i].begin, end = pieces_[i].end;
        for (++i; i < pieces_.size() && pieces_[i].begin <= end; ++i) end = std::max(end, pieces_[i].end);
        const std::int32_t from = std::max(done, begin / kTile), to = (end + kTile - 1) / kTile;
        const std::int32_t whole_from = std::clamp(first_whole, from, std::max(from, to)),
                           whole_to = std::clamp(end_whole, whole_from, std::max(whole_from, to));
        emit(from, whole_from, false);
        emit(whole_from, whole_to, true);
        emit(whole_to, to, false);
        done = std::max(done, to);
    }
}

void BackwardList::emit(std::int32_t first_tile, std::int32_t end_tile, bool whole) {
    // Tiles that need the same runs compared are one span. Few runs are compared everywhere; of many, each tile names its own.
    constexpr std::size_t kFew = 3;
    for (std::int32_t tile = first_tile; tile < end_tile;) {
        const std::int32_t count = whole || pieces_.size() <= kFew ? end_tile - tile : 1;
        std::uint32_t low = 0, high = 0;
        if (!whole) {
            low = pieces_.front().run, high = pieces_.back().run;
            if (pieces_.size() > kFew) {
                const std::int32_t begin = tile * kTile, end = begin + kTile;
                const auto meets = [&](const Piece& piece) { return piece.begin < end && piece.end > begin; };
                const auto one = std::find_if(pieces_.begin(), pieces_.end(), meets);
                const auto last = std::find_if(pieces_.rbegin(), pieces_.rend(), meets);
                if (one == pieces_.end()) {  // between two pieces
                    ++tile;
                    continue;
                }
                low = one->run, high = last->run;
            }
        }
        spans.push_back({tile * kTile, static_cast<unsigned>(count), low, whole ? 0 : high - low + 1});
        tiles += count;
        if (!whole) partial_tiles += count;
        tile += count;
    }
}

/// Parts have the tiles of their block among them, so that cutting changes nothing.
void BackwardList::count_additions() {
    row_additions.assign(static_cast<std::size_t>(row_tiles_) + 1, 0);
    for (const abi::RowSpan& span : spans) {  // wraps around below zero and back
        const auto tile = static_cast<std::size_t>(span.row_begin / kTile);
        ++row_additions[tile];
        --row_additions[tile + span.tiles];
    }
    std::partial_sum(row_additions.begin(), row_additions.end(), row_additions.begin());
    row_additions.pop_back();
}

void BackwardList::cut(std::int64_t limit, const PartEnds& part_ends, bool all) {
    const auto count = unsorted_.size();
    for (std::size_t b = 0; b < count; ++b) {
        const abi::KeyBlock block = unsorted_[b];
        if (block.tiles == 0 || (block.tiles <= limit && !all) || slots.size() >= abi::KeyBlock::kNoSlot) continue;
        ends_.clear();
        part_ends(b, ends_);
        if (ends_.size() < 2 && !all) continue;
        const auto slot = static_cast<unsigned short>(slots.size());
        slots.push_back({block.key_begin, block.keys});
        // Copies of the block's spans, cut where a part ends.
        std::size_t span = block.span_begin;
        unsigned used = 0, begin = 0;  // tiles of the span, and of the block before the part
        for (const unsigned end : ends_) {
            const abi::KeyBlock part = {block.key_begin, block.keys, slot, static_cast<unsigned>(spans.size()), end - begin};
            for (unsigned left = end - begin; left > 0;) {
                abi::RowSpan one = spans[span];
                one.row_begin += static_cast<int>(used) * kTile;
                one.tiles = std::min(left, one.tiles - used);
                used += one.tiles;
                left -= one.tiles;
                if (used == spans[span].tiles) ++span, used = 0;
                spans.push_back(one);
            }
            if (begin == 0) {
                unsorted_[b] = part;
            } else {
                unsorted_.push_back(part);
            }
            begin = end;
        }
    }
}

}  // namespace sapwood
