// SPDX-License-Identifier: Apache-2.0
#include "plan/packed_list.h"

#include <algorithm>

namespace sapwood {

void PackedList::build(const Pack& pack, std::int32_t block_q, std::int32_t block_kv) {
    const std::span<const KeyRun> all = pack.runs();
    const auto rows = static_cast<std::int32_t>(pack.rows());
    runs.clear();
    for (const KeyRun& r : all) runs.push_back({r.key_begin, r.key_end, r.row_begin, r.row_end, r.first, r.last, {}});
    unsorted_.clear();
    spans.clear();
    active_.clear();
    tiles = partial_tiles = 0;

    std::uint32_t next = 0;  // run that no block so far has reached
    for (std::int32_t begin = 0; begin < rows; begin += block_q) {
        const std::int32_t end = std::min(begin + block_q, rows);
        std::erase_if(active_, [&](std::uint32_t run) { return all[run].row_end <= begin; });
        for (; next < all.size() && all[next].row_begin < end; ++next) {
            if (all[next].row_end > begin) active_.push_back(next);
        }
        pieces_.clear();
        for (const std::uint32_t i : active_) {
            const KeyRun& run = all[i];
            // Row r sees the run's keys of (r - last, r - first]. Some row: from the first row's low end to the last row's high
            // end; every row: the other way round.
            const std::int32_t top = std::max(begin, run.row_begin), bottom = std::min(end, run.row_end) - 1;
            Piece piece = {.begin = std::max(run.key_begin, top - run.last + 1),
                           .end = std::min(run.key_end, bottom - run.first + 1),
                           .whole_begin = std::max(run.key_begin, bottom - run.last + 1),
                           .whole_end = std::min(run.key_end, top - run.first + 1),
                           .run = i};
            if (piece.begin >= piece.end) continue;
            if (run.row_begin > begin || run.row_end < end || piece.whole_begin >= piece.whole_end)
                piece.whole_begin = piece.whole_end = piece.end;
            pieces_.push_back(piece);
        }
        const auto first_span = static_cast<std::uint32_t>(spans.size());
        const std::int64_t before = tiles;
        cover(block_kv);
        unsorted_.push_back({begin, static_cast<unsigned>(end - begin), first_span, static_cast<unsigned>(tiles - before)});
    }
    sort_longest_first(unsorted_, blocks, counts_);
}

void PackedList::cover(std::int32_t block_kv) {
    auto at = static_cast<std::int32_t>(pieces_.size()) - 1;
    std::int32_t end = at >= 0 ? pieces_[static_cast<std::size_t>(at)].end : 0;  // keys from here on are covered
    const auto piece = [&](std::int32_t i) -> const Piece& { return pieces_[static_cast<std::size_t>(i)]; };
    while (at >= 0) {
        end = std::min(end, piece(at).end);
        if (end <= piece(at).begin) {
            --at;
            continue;
        }
        if (end <= piece(at).whole_end && end > piece(at).whole_begin) {
            // Runs that lie side by side and are all seen whole are one stretch.
            std::int32_t low = at;
            while (low > 0 && piece(low).whole_begin == piece(low).begin && piece(low - 1).whole_end == piece(low).begin &&
                   piece(low - 1).whole_begin < piece(low - 1).whole_end)
                --low;
            const std::int32_t whole = (end - piece(low).whole_begin) / block_kv;
            if (whole > 0) {
                end -= whole * block_kv;
                spans.push_back({end, static_cast<unsigned>(whole), 0, 0});
                tiles += whole;
                continue;
            }
        }
        const std::int32_t begin = end - block_kv;
        std::int32_t low = at;
        while (low > 0 && piece(low - 1).end > begin) --low;
        spans.push_back({begin, 1, piece(low).run, piece(at).run - piece(low).run + 1});
        ++tiles;
        ++partial_tiles;
        end = begin;
    }
}

}  // namespace sapwood
