// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cmath>

#include "plan/work_list.h"

namespace sapwood {

Split choose_split(const ForestOrder& order, const Cover& cover, const CostModel& model, const SplitInput& input) {
    struct BlockSize {
        std::int64_t tiles, requests;
        double seen;  // (request, tile) incidences
    };
    std::vector<BlockSize> sizes;
    sizes.reserve(cover.blocks.size());
    std::vector<std::int32_t> entries;
    std::int64_t total_tiles = 0, longest = 1;
    for (const Block& block : cover.blocks) {
        entries_of(order, block, entries);
        std::int64_t tokens = 0;
        double seen = 0;
        for (const std::int32_t e : entries) {
            const ForestOrder::Entry& entry = order.entries[e];
            tokens += entry.padded;
            seen += static_cast<double>(entry.padded) * (std::min(entry.request_end, block.request_end) -
                                                          std::max(entry.request_begin, block.request_begin));
        }
        const std::int64_t tiles = std::max<std::int64_t>(1, (tokens + input.block_kv - 1) / input.block_kv);
        sizes.push_back({tiles, block.request_end - block.request_begin, seen / input.block_kv});
        total_tiles += tiles;
        longest = std::max(longest, tiles);
    }
    const double tile_bytes = model.token_bytes * input.block_kv;
    const double workers = input.resident_blocks;
    Split best = {.tiles = longest, .makespan = 0};
    bool first = true;
    // Item lengths from one item a worker to many; an explicit config fixes the number.
    for (const int share : {1, 2, 3, 4, 6, 8, 12, 16, 24, 32}) {
        const int pieces = input.aimed != 0 ? input.aimed : share;
        const double ideal = static_cast<double>(total_tiles) * input.kv_heads / (workers * pieces);
        const std::int64_t length = std::clamp<std::int64_t>(static_cast<std::int64_t>(std::ceil(ideal)), 1, longest);
        double items = 0, partials = 0;
        for (const BlockSize& size : sizes) {
            const std::int64_t count = (size.tiles + length - 1) / length;
            items += static_cast<double>(count);
            // Each item has partial rows for the requests that see something in it: a request is in as many items as its tiles touch.
            if (count > 1) {
                partials += std::min(static_cast<double>(count * size.requests),
                                     size.seen / static_cast<double>(length) + static_cast<double>(size.requests));
            }
        }
        const double total = (static_cast<double>(total_tiles) * tile_bytes + items * model.item_bytes + partials * model.partial_bytes) *
                             input.kv_heads;
        const double item = static_cast<double>(length) * tile_bytes + model.item_bytes;
        // Fewer items than workers: the slowest item is the time. More: an even share and, on average, half an item at the end.
        const double makespan = items * input.kv_heads <= workers ? std::max(item, total / workers) : total / workers + item / 2;
        if (first || makespan < best.makespan * 0.999) best = {.tiles = length, .makespan = makespan};
        first = false;
        if (input.aimed != 0) break;
    }
    return best;
}

}  // namespace sapwood
