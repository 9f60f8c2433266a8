// SPDX-License-Identifier: Apache-2.0
#include "plan/work_list.h"

#include <algorithm>
#include <cmath>
#include <numeric>

namespace sapwood {
namespace {

constexpr std::int64_t kChunk = abi::kChunkTokens;
// Chunks go in pairs through the compute warps.
constexpr std::int64_t kPair = 2;
constexpr std::int32_t kRowBlock = 16;

std::int64_t chunks_of(std::int64_t tokens) { return (tokens + kChunk - 1) / kChunk; }

}  // namespace

void WorkList::emit_run(const ForestOrder& order, const Run& run, std::int64_t first_chunk, std::int64_t count,
                        std::int32_t hull_begin, std::int32_t group) {
    const ForestOrder::Entry& entry = order.entries[run.entry];
    for (std::int64_t c = first_chunk; c < first_chunk + count; ++c) {
        const std::int64_t token = run.token_begin + c * kChunk;
        abi::Chunk chunk{};
        chunk.position = static_cast<std::uint32_t>(entry.kv_begin + token);
        chunk.row_begin = static_cast<std::uint16_t>((run.request_begin - hull_begin) * group);
        chunk.row_end = static_cast<std::uint16_t>((run.request_end - hull_begin) * group);
        chunk.tokens = static_cast<std::uint32_t>(std::min(kChunk, run.token_begin + run.tokens - token));
        chunks.push_back(chunk);
    }
    if (run.ends && first_chunk + count == chunks_of(run.tokens)) {
        last_chunks_.push_back({static_cast<std::uint32_t>(chunks.size() - 1), last_of_node_[entry.node]});
        last_of_node_[entry.node] = static_cast<std::int32_t>(last_chunks_.size() - 1);
    }
}

void WorkList::emit_item(const ForestOrder& order, std::span<const Run> runs, std::int32_t block_kv, std::int32_t group) {
    std::int32_t begin = runs.front().request_begin, end = runs.front().request_end;
    for (const Run& run : runs) {
        begin = std::min(begin, run.request_begin);
        end = std::max(end, run.request_end);
    }
    abi::Item item{};
    item.chunk_begin = static_cast<std::uint32_t>(chunks.size());
    item.request_begin = static_cast<std::uint32_t>(requests.size());
    item.requests = static_cast<std::uint16_t>(end - begin);

    // Runs that few rows see would keep one warp busy at a time: let them take turns with the other rows' runs, a pair of chunks
    // each.
    const auto narrow = [&](const Run& run) { return (run.request_end - run.request_begin) * group <= kRowBlock; };
    struct Turn {
        const Run* run;
        std::int64_t next;
    };
    static constexpr std::size_t kQueues = 8;
    std::vector<const Run*> queues[kQueues];
    std::int32_t used = 0;
    for (const Run& run : runs) {
        if (!narrow(run) || (end - begin) * group <= kRowBlock) {
            emit_run(order, run, 0, chunks_of(run.tokens), begin, group);
            continue;
        }
        auto& queue = queues[static_cast<std::size_t>((run.request_begin - begin) * group / kRowBlock) % kQueues];
        if (queue.empty()) ++used;
        queue.push_back(&run);
    }
    Turn turns[kQueues] = {};
    std::size_t at[kQueues] = {};
    for (bool any = used > 0; any;) {
        any = false;
        for (std::size_t q = 0; q < kQueues; ++q) {
            std::int64_t room = kPair;
            while (room > 0 && at[q] < queues[q].size()) {
                turns[q].run = queues[q][at[q]];
                const std::int64_t all = chunks_of(turns[q].run->tokens);
                const std::int64_t count = std::min(room, all - turns[q].next);
                emit_run(order, *turns[q].run, turns[q].next, count, begin, group);
                turns[q].next += count;
                room -= count;
                if (turns[q].next == all) {
                    ++at[q];
                    turns[q].next = 0;
                }
            }
            any = any || at[q] < queues[q].size();
        }
    }
    const std::size_t in_tile = static_cast<std::size_t>(block_kv) / abi::kChunkTokens;
    while ((chunks.size() - item.chunk_begin) % in_tile != 0) chunks.push_back(abi::Chunk{});
    item.tiles = static_cast<std::uint32_t>((chunks.size() - item.chunk_begin) / in_tile);

    // A request inside the hull that sees none of the runs has no part here.
    const std::size_t base = requests.size();
    for (std::int32_t r = begin; r < end; ++r) {
        requests.push_back({order.requests[r], abi::kUnseen});
        position_.push_back(r);
    }
    std::int32_t marked = 0;
    for (const Run& run : runs) {
        for (std::int32_t r = run.request_begin; r < run.request_end && marked < end - begin; ++r) {
            abi::ItemRequest& request = requests[base + static_cast<std::size_t>(r - begin)];
            if (request.slot >= 0) continue;
            request.slot = parts_[r]++;
            ++marked;
        }
        if (marked == end - begin) break;
    }
    items.push_back(item);
}

void WorkList::resolve_slots(const ForestOrder& order) {
    // Slots of a request with several parts are neighbours; a lone part is final.
    std::vector<std::int32_t> first(parts_.size());
    slots = 0;
    for (std::size_t r = 0; r < parts_.size(); ++r) {
        first[r] = static_cast<std::int32_t>(slots);
        if (parts_[r] <= 1) continue;
        merges.push_back({order.requests[r], first[r], parts_[r], 0});
        slots += parts_[r];
    }
    for (std::size_t i = 0; i < requests.size(); ++i) {
        abi::ItemRequest& request = requests[i];
        const std::int32_t r = position_[i];
        if (request.slot >= 0) request.slot = parts_[r] > 1 ? first[r] + request.slot : abi::kFinal;
    }
}

void WorkList::build(const ForestOrder& order, const Cover& cover, const CostModel& model, const SplitInput& input,
                     const Split& split, std::size_t node_capacity) {
    const std::int32_t group = input.group;
    items.clear();
    requests.clear();
    chunks.clear();
    merges.clear();
    position_.clear();
    last_chunks_.clear();
    last_of_node_.assign(node_capacity, -1);
    parts_.assign(order.requests.size(), 0);
    changed_begin = changed_end = 0;

    std::vector<std::int32_t> entries;
    std::vector<Run> runs;
    const std::int64_t in_tile = input.block_kv / kChunk;
    const ChunkCost cost = chunk_cost(model, input);
    for (const Block& block : cover.blocks) {
        entries_of(order, block, entries);
        double block_cost = 0;
        std::int64_t block_chunks = 0;
        for (const std::int32_t e : entries) {
            const std::int64_t count = chunks_of(order.entries[e].tokens);
            block_chunks += count;
            block_cost += static_cast<double>(count) * cost(order.entries[e], block, 1.0);
        }
        const std::int64_t pieces =
            pieces_of(block_cost, split.item_cost, std::max<std::int64_t>(1, (block_chunks + in_tile - 1) / in_tile));
        // Items of equal cost; each ends with a whole pair of chunks where it can, the last takes what is left.
        const double share = block_cost / static_cast<double>(pieces);
        double room = share;
        std::int64_t piece = 1;
        runs.clear();
        for (const std::int32_t e : entries) {
            const ForestOrder::Entry& entry = order.entries[e];
            const std::int32_t begin = std::max(entry.request_begin, block.request_begin);
            const std::int32_t end = std::min(entry.request_end, block.request_end);
            const double each = cost(entry, block, 1.0);
            for (std::int64_t token = 0; token < entry.tokens;) {
                std::int64_t fits = chunks_of(entry.tokens - token);
                if (piece < pieces) {
                    const std::int64_t wanted = static_cast<std::int64_t>(std::ceil(room / each / kPair)) * kPair;
                    fits = std::min(fits, std::max<std::int64_t>(wanted, 1));
                }
                const std::int64_t take = std::min(entry.tokens - token, fits * kChunk);
                runs.push_back({e, begin, end, token, take, token + take == entry.tokens});
                token += take;
                room -= static_cast<double>(fits) * each;
                if (room <= 0 && piece < pieces) {
                    emit_item(order, runs, input.block_kv, group);
                    runs.clear();
                    room += share;
                    ++piece;
                }
            }
        }
        if (!runs.empty()) emit_item(order, runs, input.block_kv, group);
    }
    resolve_slots(order);

    // Requests that see nothing get a result too: items without tiles.
    for (std::size_t i = 0; i < order.empty.size(); i += static_cast<std::size_t>(model.capacity)) {
        const std::size_t count = std::min(order.empty.size() - i, static_cast<std::size_t>(model.capacity));
        abi::Item item{};
        item.chunk_begin = 0;
        item.request_begin = static_cast<std::uint32_t>(requests.size());
        item.requests = static_cast<std::uint16_t>(count);
        for (std::size_t r = i; r < i + count; ++r) requests.push_back({order.empty[r], abi::kFinal});
        items.push_back(item);
    }

    // Longest first: blocks of the grid draw items in this order, so the short ones fill the gaps at the end. Equal ones stay in
    // depth-first order: neighbours re-read the same nodes while these are in L2.
    std::stable_sort(items.begin(), items.end(), [](const abi::Item& a, const abi::Item& b) { return a.tiles > b.tiles; });
}

bool WorkList::grow(std::int32_t node, std::int32_t count) {
    const std::int32_t first = static_cast<std::size_t>(node) < last_of_node_.size() ? last_of_node_[node] : -1;
    if (first < 0) return false;
    for (std::int32_t i = first; i >= 0; i = last_chunks_[i].next) {
        if (chunks[last_chunks_[i].chunk].tokens + static_cast<std::int64_t>(count) > kChunk) return false;
    }
    for (std::int32_t i = first; i >= 0; i = last_chunks_[i].next) {
        const std::size_t at = last_chunks_[i].chunk;
        chunks[at].tokens += static_cast<std::uint32_t>(count);
        if (changed_begin == changed_end) {
            changed_begin = at;
            changed_end = at + 1;
        } else {
            changed_begin = std::min(changed_begin, at);
            changed_end = std::max(changed_end, at + 1);
        }
    }
    return true;
}

}  // namespace sapwood
