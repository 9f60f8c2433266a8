// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <bit>
#include <cmath>
#include <utility>

#include "plan/limits.h"
#include "plan/work_list.h"

namespace sapwood {
namespace {

// Time is counted in the bytes that one worker's share of the HBM bandwidth moves in it.
// A worker alone on the chip streams at most so much faster than with all others at work (latency, then its own arithmetic).
constexpr double kAlone = 0.6;
// Waiting for the last item and reading the first partial results, before merging.
constexpr double kMergeMicroseconds = 5.0;
// Arithmetic of one SM on 16 query rows and 64 keys at head dim 128: about 0.75 us for 8 row blocks and 32 keys, measured on an
// H100.
constexpr double kWarpMicroseconds = 0.19;
// The same for 64 rows by wgmma, two warpgroups at work.
constexpr double kWarpgroupMicroseconds = 0.38;

// Partial results that survive in an L2 of 50 MB with KV streaming through it.
constexpr double kPartialsInL2 = 16.0e6;
// What a further item costs a worker that has one, beyond CostModel::item_bytes: its look-ups and the warps' scratch merge.
constexpr double kNextItemMicroseconds = 0.7;
// Steps of six percent towards item lengths that make whole rounds.
constexpr int kFitSteps = 12;
// Item lengths that are shorter are taken if they need less than this of the time.
constexpr double kShorter = 0.999;

}  // namespace

double ChunkCost::held(const Block& block) const {
    const std::int32_t with_rows = std::max(1, units_of(block.request_end - block.request_begin));
    return unit * units / std::max(1, units / with_rows);
}

ChunkTime ChunkCost::operator()(const ForestOrder::Entry& entry, const Block& block, double held) const {
    const std::int32_t requests =
        std::min(entry.request_end, block.request_end) - std::max(entry.request_begin, block.request_begin);
    // Whoever holds the first request of an entry counts as its first reader; blocks that do nothing else at the same time have
    // each their part in that read.
    double load = entry.request_begin >= block.request_begin ? first_read : again;
    if (entry.side_by_side)
        load = again + (first_read - again) * requests / static_cast<double>(entry.request_end - entry.request_begin);
    return {load, units_of(requests) * unit, entry.padded > ring_keys ? held : 0};
}

ChunkCost chunk_cost(const CostModel& model, const SplitInput& input) {
    ChunkCost cost;
    cost.group = input.group;
    cost.first_read = model.token_bytes * abi::kChunkTokens;
    cost.again = cost.first_read * model.reread;
    cost.unit_shift = std::countr_zero(static_cast<std::uint32_t>(input.unit_rows)), cost.units = input.units,
    cost.ring_keys = input.ring_keys;
    cost.unit = (input.unit_rows == 64 ? kWarpgroupMicroseconds : kWarpMicroseconds) / 4 * kHbmBytesPerMicrosecond / input.sms *
                model.token_bytes * model.values_a_byte / 256;
    return cost;
}

RowLoad row_load(const ForestOrder& order, const CostModel& model, const SplitInput& input) {
    const ChunkCost cost = chunk_cost(model, input);
    double loads = 0, arithmetic = 0, tiles = 0;
    for (const ForestOrder::Entry& entry : order.entries) {
        const double chunks = static_cast<double>(entry.padded) / abi::kChunkTokens;
        loads += chunks * cost.first_read;
        arithmetic += chunks * cost.units_of(entry.request_end - entry.request_begin) * cost.unit;
        const std::int32_t blocks = ((entry.request_end - entry.request_begin) * input.group + 63) / 64;
        tiles += chunks * abi::kChunkTokens / 64 * blocks * input.kv_heads;
    }
    const double rows = static_cast<double>(order.requests.size()) * input.group * input.kv_heads;
    return {.rows = rows / input.sms, .tiles = tiles / input.sms, .arithmetic_to_loads = loads > 0 ? arithmetic / loads : 0};
}

bool RowLoad::heavy(bool drafts, bool widens) const {
    constexpr double kRows = 48, kTiles = 16, kOfForests = 1.0, kOfDrafts = 0.25, kWidened = 2.0;
    // Few rows over many keys fill the chip as well, each SM with a part of the keys.
    return (rows >= kRows || tiles >= kTiles) && arithmetic_to_loads > (widens ? kWidened : drafts ? kOfDrafts : kOfForests);
}

bool RowLoad::very_heavy() const {
    // Arithmetic is the limit however well it is done; near the limit only work that is long enough gains by longer tiles (8 x 8k
    // keys, 256 rows: 140 to 129 us; 1 x 8k: 32 to 34).
    constexpr double kArithmeticToLoads = 2.0, kNear = 0.98, kTiles = 200;
    return arithmetic_to_loads > kArithmeticToLoads || (arithmetic_to_loads > kNear && tiles > kTiles);
}

double least_share(const ForestOrder& order, const CostModel& model, const SplitInput& input) {
    const ChunkCost cost = chunk_cost(model, input);
    double all = 0;
    for (const ForestOrder::Entry& entry : order.entries) {
        const std::int32_t requests = entry.request_end - entry.request_begin;
        const std::int32_t blocks = (requests + model.capacity - 1) / model.capacity;
        all += static_cast<double>(entry.padded / abi::kChunkTokens) *
               std::max(cost.first_read + (blocks - 1) * cost.again, cost.units_of(requests) * cost.unit);
    }
    return all * input.kv_heads / kHbmBytesPerMicrosecond;
}

Split choose_split(const ForestOrder& order, const Cover& cover, const CostModel& model, const SplitInput& input) {
    std::vector<BlockSize> sizes;
    sizes.reserve(cover.blocks.size());
    const ChunkCost cost = chunk_cost(model, input);
    double all = 0, all_busy = 0, longest = 0;
    // Blocks of one draft's path are neighbours. Cut alike, they pass the same keys at the same time, and all but one find them in
    // L2.
    const ForestOrder::Entry* path = nullptr;  // of the blocks from path_begin on
    std::size_t path_begin = 0;
    double slowest = 0;
    const auto end_path = [&] {
        for (std::size_t i = path_begin; i < sizes.size(); ++i) sizes[i].paced = slowest;
        path_begin = sizes.size();
        slowest = 0;
    };
    for (const Block& block : cover.blocks) {
        BlockSize size;
        const ForestOrder::Entry* longest_shared = nullptr;
        const double held = cost.held(block);
        each_entry(order, block, [&](const ForestOrder::Entry& entry) {
            const std::int64_t own = entry.padded / abi::kChunkTokens;
            if (entry.side_by_side && (longest_shared == nullptr || entry.padded > longest_shared->padded)) longest_shared = &entry;
            size.chunks += own;
            const ChunkTime time = cost(entry, block, held);
            size.crowded += static_cast<double>(own) * time.at(1.0);
            size.alone += static_cast<double>(own) * time.at(kAlone);
            all_busy += static_cast<double>(own) * time.busy();
            size.seen += static_cast<double>(own) *
                         (std::min(entry.request_end, block.request_end) - std::max(entry.request_begin, block.request_begin));
        });
        const std::int64_t in_tile = input.block_kv / static_cast<std::int64_t>(abi::kChunkTokens);
        size.tiles = std::max<std::int64_t>(1, (size.chunks + in_tile - 1) / in_tile);
        size.requests = block.request_end - block.request_begin;
        size.seen /= static_cast<double>(size.chunks > 0 ? size.chunks : 1);
        if (longest_shared != path || path == nullptr) end_path();
        path = longest_shared;
        slowest = std::max(slowest, size.crowded);
        sizes.push_back(size);
        all += size.crowded;
        longest = std::max(longest, size.crowded);
    }
    end_path();
    const double workers = input.resident_blocks;
    const double microsecond = kHbmBytesPerMicrosecond / workers;
    const auto items_at = [&](double item_cost) {
        std::int64_t items = 0;
        for (const BlockSize& size : sizes) items += pieces_of(size.paced, item_cost, size.tiles);
        return items;
    };
    Split best;
    best.item_cost = longest;
    bool first = true;
    std::int64_t tried = 0;
    // Blocks as they are, then as many items as make whole rounds over the workers (an explicit config fixes the number): a few
    // items more than a round would cost a round more.
    for (const double share : {0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0, 24.0}) {
        const double wanted = std::max(1.0, std::floor((input.aimed != 0 ? input.aimed : share) * workers / input.kv_heads));
        double length = std::min(all / wanted, longest);
        if (length < longest) {
            for (int i = 0; i < kFitSteps && longest > length && static_cast<double>(items_at(length)) > wanted; ++i)
                length *= 1.06;
            length = std::min(length, longest);
        }
        const std::int64_t pieces = items_at(length);
        if (!first && pieces == tried) continue;
        tried = pieces;
        double items = 0, parts = 0, work = 0, slowest_alone = 0;
        for (const BlockSize& size : sizes) {
            const double count = static_cast<double>(pieces_of(size.paced, length, size.tiles));
            items += count;
            // Each item has partial rows for the requests that see something in it: a request is in as many items as its keys
            // touch.
            if (count > 1) {
                parts +=
                    std::min(count * static_cast<double>(size.requests), size.seen * count + static_cast<double>(size.requests));
            }
            work += size.crowded + count * model.item_bytes;
            slowest_alone = std::max(slowest_alone, size.alone / count + model.item_bytes);
        }
        const double count = items * input.kv_heads;
        const double total = work * input.kv_heads / workers;
        const double rounds = std::floor(count / workers), rest = count / workers - rounds;
        // Whole rounds at an even share each, then the slowest item: what is left by then does not fill the chip, so it loads as
        // fast as a worker can (but computes no faster). One round or less is the slowest item, unless the bandwidth is the limit
        // all the same.
        double makespan = rounds * total * workers / count + (rest > 0 ? slowest_alone : 0);
        makespan = std::max(makespan, total + (rounds >= 1 ? 0.2 * slowest_alone : 0));
        makespan += std::max(0.0, count / workers - 1) * kNextItemMicroseconds * microsecond;
        if (parts > 0 || cover.cuts > 0) {
            // Few partial results are still in L2 when they are added up.
            const double bytes = parts * model.partial_bytes * input.kv_heads;
            makespan += kMergeMicroseconds * microsecond + bytes * (bytes < 2 * kPartialsInL2 ? model.reread : 1.0) / workers;
        }
        if (first || makespan < best.makespan * kShorter) {
            best.item_cost = length;
            best.makespan = makespan;
        }
        first = false;
        if (input.aimed != 0) break;
        // What is tried from here on is merged: even shares and the shortest merge may take longer already.
        if (best.makespan * kShorter <= all * input.kv_heads / workers + kMergeMicroseconds * microsecond) break;
    }
    best.makespan /= microsecond;
    best.even_share = all_busy * input.kv_heads / workers / microsecond;
    best.sizes = std::move(sizes);
    return best;
}

std::int64_t pieces_of(double block_cost, double item_cost, std::int64_t tiles) {
    if (item_cost <= 0) return 1;
    // A hair over a whole number of items is that number: the last one must not be a sliver. Rounded up by hand: this runs a
    // hundred times a block, and std::ceil is a call.
    const double pieces = block_cost / item_cost - 0.05;
    const std::int64_t whole = static_cast<std::int64_t>(pieces);
    return std::clamp<std::int64_t>(whole + (static_cast<double>(whole) < pieces), 1, tiles);
}

}  // namespace sapwood
