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
    abi::Chunk chunk = {.position = static_cast<std::uint32_t>(entry.kv_begin + run.token_begin + first_chunk * kChunk),
                        .row_begin = static_cast<std::uint16_t>((run.request_begin - hull_begin) * group),
                        .row_end = static_cast<std::uint16_t>((run.request_end - hull_begin) * group),
                        .tokens = kChunk,
                        .reserved = 0};
    for (std::int64_t c = 0; c < count; ++c, chunk.position += kChunk) *end_++ = chunk;
    if (first_chunk + count < chunks_of(run.tokens)) return;
    end_[-1].tokens = static_cast<std::uint32_t>(run.tokens - (first_chunk + count - 1) * kChunk);
    if (run.ends) {
        last_chunks_.push_back({static_cast<std::uint32_t>(end_ - chunks.data() - 1), last_of_node_[entry.node]});
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
    const abi::Chunk* first = end_;
    item.chunk_begin = static_cast<std::uint32_t>(end_ - chunks.data());
    item.request_begin = static_cast<std::uint32_t>(requests.size());
    item.requests = static_cast<std::uint16_t>(end - begin);

    // Runs that few rows see would keep one warp busy at a time: let them take turns with the other rows' runs, a pair of chunks
    // each.
    const auto narrow = [&](const Run& run) { return (run.request_end - run.request_begin) * group <= kRowBlock; };
    const bool one_row_block = (end - begin) * group <= kRowBlock;
    for (auto& queue : queues_) queue.clear();
    for (const Run& run : runs) {
        if (one_row_block || !narrow(run)) {
            emit_run(order, run, 0, chunks_of(run.tokens), begin, group);
        } else {
            queues_[static_cast<std::size_t>((run.request_begin - begin) * group / kRowBlock) % kQueues].push_back(&run);
        }
    }
    struct Turn {
        std::size_t run = 0;
        std::int64_t chunk = 0;
    };
    Turn turns[kQueues];
    for (bool any = true; any;) {
        any = false;
        for (std::size_t q = 0; q < kQueues; ++q) {
            for (std::int64_t room = kPair; room > 0 && turns[q].run < queues_[q].size();) {
                const Run& run = *queues_[q][turns[q].run];
                const std::int64_t count = std::min(room, chunks_of(run.tokens) - turns[q].chunk);
                emit_run(order, run, turns[q].chunk, count, begin, group);
                turns[q].chunk += count;
                room -= count;
                if (turns[q].chunk == chunks_of(run.tokens)) turns[q] = {turns[q].run + 1, 0};
            }
            any = any || turns[q].run < queues_[q].size();
        }
    }
    const std::size_t in_tile = static_cast<std::size_t>(block_kv) / abi::kChunkTokens;
    const std::size_t tiles = (static_cast<std::size_t>(end_ - first) + in_tile - 1) / in_tile;
    end_ = chunks.data() + item.chunk_begin + tiles * in_tile;  // what lies between is zero: padding
    item.tiles = static_cast<std::uint32_t>(tiles);

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

    const std::int64_t in_tile = input.block_kv / kChunk;
    const ChunkCost cost = chunk_cost(model, input);
    // Room for all chunks, padding included, so that they are written in place.
    std::int64_t room_for = 0;
    for (const BlockSize& size : split.sizes) {
        room_for += size.chunks + (pieces_of(size.crowded, split.item_cost, size.tiles) + 1) * in_tile;
    }
    chunks.resize(static_cast<std::size_t>(room_for));
    end_ = chunks.data();

    std::vector<std::int32_t> entries;
    std::vector<Run> runs;
    for (std::size_t b = 0; b < cover.blocks.size(); ++b) {
        const Block& block = cover.blocks[b];
        const BlockSize& size = split.sizes[b];
        const std::int64_t pieces = pieces_of(size.crowded, split.item_cost, size.tiles);
        entries_of(order, block, entries);
        // Items of equal cost; each ends with a whole pair of chunks where it can, the last takes what is left.
        const double share = size.crowded / static_cast<double>(pieces);
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
    chunks.resize(static_cast<std::size_t>(end_ - chunks.data()));
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
