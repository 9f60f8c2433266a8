// SPDX-License-Identifier: Apache-2.0
#include "plan/array_list.h"

#include <algorithm>

namespace sapwood {
namespace {

/// Room for a block of this many tiles. One span more than tiles is never needed, so that such a list never has to end early.
unsigned room_for(unsigned tiles) { return static_cast<unsigned>(std::min<std::int64_t>(ArrayList::kMostSpans, tiles + 1ll)); }

}  // namespace

void ArrayList::build(const Pack& pack, PackedList& list) {
    // Runs of a varlen pack are its sequences: ascending by row as well as by key, none in another.
    const std::span<const KeyRun> runs = pack.runs();
    present = true;
    spans = 0;
    blocks.clear();
    bounds = (pack.keys() + abi::kKeyUnit - 1) / abi::kKeyUnit;
    for (abi::QueryBlock& block : list.blocks) {
        const std::int32_t begin = block.row_begin, end = begin + static_cast<std::int32_t>(block.rows);
        const auto first = std::partition_point(runs.begin(), runs.end(), [&](const KeyRun& r) { return r.row_end <= begin; });
        const auto last = std::partition_point(first, runs.end(), [&](const KeyRun& r) { return r.row_begin < end; });
        const unsigned room = room_for(block.tiles);
        blocks.push_back(
            {.run_begin = static_cast<unsigned>(first - runs.begin()), .runs = static_cast<unsigned>(last - first), .room = room});
        block.span_begin = static_cast<unsigned>(spans);
        spans += room;
    }
    list.spans.clear();
    span_bytes_ = static_cast<std::int64_t>(sizeof(abi::KeySpan));
}

std::int64_t ArrayList::bytes() const {
    return static_cast<std::int64_t>(blocks.size() * sizeof(abi::ArrayBlock)) + spans * span_bytes_ +
           bounds * static_cast<std::int64_t>(sizeof(abi::Bounds));
}

}  // namespace sapwood
