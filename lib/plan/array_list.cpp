// SPDX-License-Identifier: Apache-2.0
#include "plan/array_list.h"

#include <algorithm>

namespace sapwood {
namespace {

/// Runs of a varlen pack are its sequences: ascending by row as well as by key, none in another. Room is for one span more than
/// there can be tiles, so that a list of fewer than kMostSpans tiles never has to end early.
abi::ArrayBlock block_of(std::ptrdiff_t run_begin, std::ptrdiff_t runs, unsigned tiles) {
    return {.run_begin = static_cast<unsigned>(run_begin),
            .runs = static_cast<unsigned>(runs),
            .room = static_cast<unsigned>(std::min<std::int64_t>(ArrayList::kMostSpans, tiles + 1ll))};
}

}  // namespace

void ArrayList::build(const Pack& pack, PackedList& list) {
    const std::span<const KeyRun> runs = pack.runs();
    present = true;
    spans = 0;
    blocks.clear();
    bounds = (pack.keys() + abi::kKeyUnit - 1) / abi::kKeyUnit;
    for (abi::QueryBlock& block : list.blocks) {
        const std::int32_t begin = block.row_begin, end = begin + static_cast<std::int32_t>(block.rows);
        const auto first = std::partition_point(runs.begin(), runs.end(), [&](const KeyRun& r) { return r.row_end <= begin; });
        const auto last = std::partition_point(first, runs.end(), [&](const KeyRun& r) { return r.row_begin < end; });
        blocks.push_back(block_of(first - runs.begin(), last - first, block.tiles));
        block.span_begin = static_cast<unsigned>(spans);
        spans += blocks.back().room;
    }
    list.spans.clear();
}

void ArrayList::build(const Pack& pack, BackwardList& list) {
    const std::span<const KeyRun> runs = pack.runs();
    present = true;
    spans = 0;
    blocks.clear();
    bounds = (pack.rows() + abi::kRowTile - 1) / abi::kRowTile;
    for (abi::KeyBlock& block : list.blocks) {
        const std::int32_t begin = block.key_begin, end = begin + block.keys;
        const auto first = std::partition_point(runs.begin(), runs.end(), [&](const KeyRun& r) { return r.key_end <= begin; });
        const auto last = std::partition_point(first, runs.end(), [&](const KeyRun& r) { return r.key_begin < end; });
        abi::ArrayBlock made = block_of(first - runs.begin(), last - first, block.tiles);
        // Tiles of a part ascend, and no other part of the block has any between its first and its last.
        const abi::RowSpan* span = list.spans.data() + block.span_begin;
        for (unsigned tiles = 0; tiles < block.tiles; tiles += span++->tiles) {
            const unsigned tile = static_cast<unsigned>(span->row_begin) / abi::kRowTile;
            if (tiles == 0) made.tile_begin = tile;
            made.tile_end = tile + span->tiles;
        }
        blocks.push_back(made);
        block.span_begin = static_cast<unsigned>(spans);
        spans += made.room;
    }
    list.spans.clear();
}

std::int64_t ArrayList::bytes() const {
    static_assert(sizeof(abi::KeySpan) == sizeof(abi::RowSpan));
    return static_cast<std::int64_t>(blocks.size() * sizeof(abi::ArrayBlock) +
                                     static_cast<std::size_t>(spans) * sizeof(abi::KeySpan) +
                                     static_cast<std::size_t>(bounds) * sizeof(abi::Bounds));
}

}  // namespace sapwood
