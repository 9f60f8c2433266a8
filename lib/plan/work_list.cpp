// SPDX-License-Identifier: Apache-2.0
#include "plan/work_list.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "plan/tile_words.h"

namespace sapwood {
namespace {

constexpr std::int64_t kChunk = abi::kChunkTokens;
// Chunks go in pairs through the compute warps.
constexpr std::int64_t kPair = 2;

std::int64_t chunks_of(std::int64_t tokens) { return (tokens + kChunk - 1) / kChunk; }

/// Narrows a chunk of a draft to the rows that see some of it, and says which column of their masks it is where they do not see
/// all. `column`: in chunks; `first_row`: of the mask, the one that the chunk's first request has. False if nobody sees any.
bool apply_mask(abi::Chunk& chunk, const DraftMask& mask, std::int64_t column, std::int32_t first_row, std::int32_t group) {
    const auto masked = abi::kMasked | static_cast<std::uint32_t>(column) << abi::kMaskColumnShift;
    if (!mask.known()) {
        chunk.tokens |= masked;
        return true;
    }
    const std::uint32_t whole = (1u << chunk.tokens) - 1;
    const std::int32_t count = (chunk.row_end - chunk.row_begin) / group;
    std::int32_t begin = count, end = 0;
    bool all = true;
    for (std::int32_t i = 0; i < count; ++i) {
        const std::uint32_t seen = mask.row(first_row + i)[column / 2] >> (column % 2 * kChunk) & whole;
        if (seen == 0) continue;
        // A gap between the rows that see something needs the mask too.
        all = all && seen == whole && (begin == count || end == i);
        begin = std::min(begin, i);
        end = i + 1;
    }
    if (begin >= end) return false;
    chunk.row_end = static_cast<std::uint16_t>(chunk.row_begin + end * group);
    chunk.row_begin = static_cast<std::uint16_t>(chunk.row_begin + begin * group);
    if (!all) chunk.tokens |= masked;
    return true;
}

}  // namespace

void WorkList::build_masks(const ForestOrder& order, std::int64_t words, std::size_t rows) {
    mask_words = words;
    mask_rows = static_cast<std::int64_t>(rows);
    masks.assign(order.mask_columns > 0 && !order.masks_on_device ? rows * static_cast<std::size_t>(words) : 0, 0);
    if (masks.empty()) return;
    for (const ForestOrder::Entry& entry : order.entries) {
        if (entry.mask == nullptr) continue;
        for (std::int32_t row = 0; row < entry.mask->rows(); ++row) {
            const std::int64_t to = order.requests[entry.request_begin + row] * words;
            std::copy_n(entry.mask->row(row), entry.mask->row_words(), masks.begin() + to);
        }
    }
}

void WorkList::begin_run(const ForestOrder& order, Stream& stream, std::int32_t hull_begin, std::int32_t group) {
    const Run& run = *stream.runs[stream.run];
    stream.entry = &order.entries[run.entry];
    stream.left = chunks_of(run.tokens);
    stream.plain = stream.entry->mask == nullptr ? stream.left - 1 : 0;
    stream.next = {.position = static_cast<std::uint32_t>(stream.entry->kv_begin + run.token_begin),
                   .row_begin = static_cast<std::uint16_t>((run.request_begin - hull_begin) * group),
                   .row_end = static_cast<std::uint16_t>((run.request_end - hull_begin) * group),
                   .tokens = kChunk,
                   .tile_word = 0};
    stream.next.tile_word = units_.that_see(stream.next);
}

/// Of a run whose last chunk has been written.
void WorkList::finish_run(const Stream& stream) {
    const Run& run = *stream.runs[stream.run];
    if (const std::int64_t rest = run.tokens % kChunk; rest != 0) {
        end_[-1].tokens = static_cast<std::uint32_t>(rest);
        end_[-1].tile_word &= RowUnits::kSome;
    }
    if (!run.ends || stream.entry->mask != nullptr) return;
    last_chunks_.push_back({static_cast<std::uint32_t>(end_ - chunks.data() - 1), last_of_node_[stream.entry->node]});
    last_of_node_[stream.entry->node] = static_cast<std::int32_t>(last_chunks_.size() - 1);
}

/// Of the `count` chunks at `first`, the last written, those stay that some row sees.
void WorkList::mask_chunks(const Stream& stream, abi::Chunk* first, std::int64_t count, std::int32_t group) {
    const Run& run = *stream.runs[stream.run];
    const std::int64_t column = run.token_begin / kChunk + chunks_of(run.tokens) - stream.left - count;  // of the first chunk
    abi::Chunk* kept = first;
    for (std::int64_t c = 0; c < count; ++c) {
        *kept = first[c];
        const bool seen =
            apply_mask(*kept, *stream.entry->mask, column + c, run.request_begin - stream.entry->request_begin, group);
        if (seen) {
            kept->tile_word = units_.that_see(*kept);
            ++kept;
        } else {
            loaded_tokens -= kept->tokens & abi::kTokensMask;
        }
    }
    std::fill(kept, end_, abi::Chunk{});
    end_ = kept;
}

/// Writes the next `count` chunks of a run as if none of them were its last, or masked.
inline void WorkList::write(Stream& stream, std::int64_t count) {
    abi::Chunk chunk = stream.next;  // a copy: what is written could be the stream's, for all that the compiler knows
    abi::Chunk* to = end_;
    for (abi::Chunk* const end = to + count; to != end; chunk.position += kChunk) *to++ = chunk;
    end_ = to;
    stream.next.position = chunk.position;
    stream.left -= count;
    stream.plain -= count;
}

std::int64_t WorkList::take(const ForestOrder& order, Stream& stream, std::int64_t room, std::int32_t hull_begin,
                            std::int32_t group) {
    const std::int64_t asked = room;
    while (room > 0 && stream.left > 0) {
        const std::int64_t count = std::min(room, stream.left);
        abi::Chunk* const first = end_;
        const bool last = count == stream.left;
        write(stream, count);
        if (last) finish_run(stream);
        if (stream.entry->mask != nullptr) mask_chunks(stream, first, count, group);
        room -= count;
        if (last && ++stream.run < stream.runs.size()) begin_run(order, stream, hull_begin, group);
    }
    return asked - room;
}

void WorkList::emit_item(const ForestOrder& order, std::span<const Run> runs, const SplitInput& input) {
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

    // The order of an item's keys is free, and two things ask for mixing them. What other items load too comes from L2 and is seen
    // by many rows; what this one alone loads waits for HBM: blocks that do the one and then the other, all at the same time, use
    // half of the chip at a time. And runs that few rows see would keep one unit of compute warps busy: those of different units
    // take turns, as many chunks each as a unit works on at once. To a warpgroup that is a tile, whoever sees how much of it: what
    // makes no whole one comes last, together.
    const std::size_t in_tile = static_cast<std::size_t>(input.block_kv) / abi::kChunkTokens;
    const std::int32_t group = input.group, unit_rows = input.unit_rows;
    const std::int64_t turn = unit_rows > 16 ? static_cast<std::int64_t>(in_tile) : kPair;
    const auto queues = static_cast<std::size_t>(((end - begin) * group + unit_rows - 1) / unit_rows);
    const bool one_unit = queues == 1;
    units_ = RowUnits(unit_rows, (end - begin) * group);
    for (Stream& stream : streams_) stream.runs.clear(), stream.run = 0, stream.left = stream.for_turns = 0;
    for (const Run& run : runs) {
        const ForestOrder::Entry& entry = order.entries[run.entry];
        const bool narrow = !one_unit && (run.request_end - run.request_begin) * group <= unit_rows;
        const std::size_t queue = static_cast<std::size_t>((run.request_begin - begin) * group / unit_rows);
        const bool shared = !narrow && (entry.request_begin < run.request_begin || entry.request_end > run.request_end);
        Stream& stream = streams_[shared ? kShared : narrow ? kNarrow + queue : kOwn];
        stream.runs.push_back(&run);
        if (stream.runs.size() == 1) begin_run(order, stream, begin, group);
        stream.for_turns += chunks_of(run.tokens);
        loaded_tokens += run.tokens;
    }
    const std::int64_t step = static_cast<std::int64_t>(in_tile);
    if (unit_rows > 16) {
        for (Stream& stream : streams_) stream.for_turns &= -step;
    }
    const std::int64_t everyones = streams_[kShared].for_turns;
    std::int64_t own = -everyones, shared_done = 0, own_done = 0;
    for (const Stream& stream : streams_) own += stream.for_turns;
    const auto from = [&](std::size_t index, std::int64_t room) {
        Stream& stream = streams_[index];
        room = std::min(room, stream.for_turns);
        if (room <= stream.plain) {  // most are
            write(stream, room);
        } else {
            room = take(order, stream, room, begin, group);
        }
        stream.for_turns -= room;
        return room;
    };
    // in_tile and turn are powers of two.
    const auto left_of = [&](std::int64_t of) { return of - ((end_ - first) & (of - 1)); };
    for (std::size_t queue = 0; shared_done < everyones || own_done < own;) {
        // Turns end where a tile, or a pair, ends. (Two tiles a turn lost 4 % on FT5.)
        if (own_done == own) {
            shared_done += from(kShared, everyones);
            continue;
        }
        // Own chunks that come before the next turn of the shared ones: in proportion, and as many shared ones first.
        const bool alone = shared_done == everyones;
        const std::int64_t due = alone ? own : (shared_done * own + everyones - 1) / everyones;
        if (own_done >= due) {
            shared_done += from(kShared, left_of(step));
        } else if (streams_[kOwn].for_turns > 0) {
            own_done += from(kOwn, alone ? own : left_of(step));
        } else {
            do {
                const std::size_t of = kNarrow + queue;
                if (++queue == queues) queue = 0;
                if (turn == kPair && streams_[of].plain >= kPair && left_of(kPair) == kPair) {  // most turns of single warps
                    write(streams_[of], kPair);
                    streams_[of].for_turns -= kPair;
                    own_done += kPair;
                } else {
                    own_done += from(of, left_of(turn));
                }
            } while (own_done < due);
        }
    }
    for (std::size_t index = kNarrow + kQueues; index-- > 0;) {
        while (streams_[index].left > 0) take(order, streams_[index], streams_[index].left, begin, group);
    }
    const std::size_t tiles = (static_cast<std::size_t>(end_ - first) + in_tile - 1) / in_tile;
    end_ = chunks.data() + item.chunk_begin + tiles * in_tile;  // what lies between is zero: padding
    item.tiles = static_cast<std::uint32_t>(tiles);
    set_tile_words({chunks.data() + item.chunk_begin, tiles * in_tile}, in_tile, input, (end - begin) * group);

    // A request inside the hull that sees none of the runs has no part here.
    const std::size_t base = requests.size();
    for (std::int32_t r = begin; r < end; ++r) {
        requests.push_back({order.requests[r], abi::kUnseen});
        position_.push_back(r);
    }
    item.in_a_row = 1;
    for (std::size_t i = base + 1; i < requests.size(); ++i)
        item.in_a_row = item.in_a_row && requests[i].request == requests[i - 1].request + 1;
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
    items.clear();
    requests.clear();
    chunks.clear();
    merges.clear();
    position_.clear();
    last_chunks_.clear();
    last_of_node_.assign(node_capacity, -1);
    parts_.assign(order.requests.size(), 0);
    changed_begin = changed_end = 0;
    loaded_tokens = 0;

    const std::int64_t in_tile = input.block_kv / kChunk;
    const ChunkCost cost = chunk_cost(model, input);
    // Room for all chunks, padding included, so that they are written in place.
    std::int64_t room_for = 0;
    for (const BlockSize& size : split.sizes) {
        room_for += size.chunks + (pieces_of(size.paced, split.item_cost, size.tiles) + 1) * in_tile;
    }
    chunks.resize(static_cast<std::size_t>(room_for));
    end_ = chunks.data();

    std::vector<std::int32_t> entries;
    std::vector<Run> runs;
    for (std::size_t b = 0; b < cover.blocks.size(); ++b) {
        const Block& block = cover.blocks[b];
        const BlockSize& size = split.sizes[b];
        const std::int64_t pieces = pieces_of(size.paced, split.item_cost, size.tiles);
        entries_of(order, block, entries);
        // Items of equal cost; each ends with a whole pair of chunks where it can, the last takes what is left.
        const double share = size.crowded / static_cast<double>(pieces), held = cost.held(block);
        double room = share;
        std::int64_t piece = 1;
        runs.clear();
        for (const std::int32_t e : entries) {
            const ForestOrder::Entry& entry = order.entries[e];
            const std::int32_t begin = std::max(entry.request_begin, block.request_begin);
            const std::int32_t end = std::min(entry.request_end, block.request_end);
            const double each = pieces > 1 ? cost(entry, block, held).at(1.0) : 0;
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
                    emit_item(order, runs, input);
                    runs.clear();
                    room += share;
                    ++piece;
                }
            }
        }
        if (!runs.empty()) emit_item(order, runs, input);
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
