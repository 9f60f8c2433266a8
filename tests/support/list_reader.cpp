// SPDX-License-Identifier: Apache-2.0
#include "support/list_reader.h"

#include <algorithm>
#include <cstdlib>
#include <span>
#include <utility>
#include <vector>

#include "plan/tiles.h"

namespace sapwood::support {
namespace {

/// What a list does for each request.
struct Served {
    // Where runs of KV positions begin (+1) and end (-1): two multisets of positions are equal if their edges are, summed by
    // position.
    std::vector<std::vector<std::pair<std::int64_t, int>>> edges;
    std::vector<int> finals, merges;
};

/// Reads one item into `served`; the text names the first thing wrong with it.
std::string read_item(const DecodePlan::Impl& plan, const Forest& forest, const abi::Item& item, Served& served,
                      std::vector<std::int32_t>& slot_owner, std::vector<int>& chunk_uses) {
    const WorkList& list = plan.list;
    const unsigned group = static_cast<unsigned>(group_of(plan.problem));
    const unsigned rows = item.requests * group, in_tile = static_cast<unsigned>(plan.config.block_kv) / abi::kChunkTokens;
    if (item.requests == 0 || rows > static_cast<unsigned>(plan.config.warps) * 16) return std::to_string(rows) + " rows";
    if (item.request_begin + item.requests > list.requests.size()) return "requests past the end";
    if (item.chunk_begin + std::size_t{item.tiles} * in_tile > list.chunks.size()) return "chunks past the end";
    std::vector<bool> sees(item.requests);
    unsigned padding = 0;
    for (std::size_t c = item.chunk_begin; c < item.chunk_begin + std::size_t{item.tiles} * in_tile; ++c) {
        const abi::Chunk& chunk = list.chunks[c];
        ++chunk_uses[c];
        const unsigned tokens = chunk.tokens & abi::kTokensMask;
        if (chunk.tokens == 0) {
            if (chunk.row_begin != chunk.row_end) return "padding with rows";
            ++padding;
            continue;
        }
        if (padding > 0) return "padding inside the item";
        if (tokens > abi::kChunkTokens || chunk.row_begin >= chunk.row_end || chunk.row_end > rows ||
            chunk.row_begin % group != 0 || chunk.row_end % group != 0) {
            return "chunk of " + std::to_string(chunk.tokens) + " tokens for rows " + std::to_string(chunk.row_begin) + ".." +
                   std::to_string(chunk.row_end);
        }
        for (unsigned r = chunk.row_begin / group; r < chunk.row_end / group; ++r) {
            sees[r] = true;
            auto& edges = served.edges.at(static_cast<std::size_t>(list.requests[item.request_begin + r].request));
            if ((chunk.tokens & abi::kMasked) == 0) {
                edges.emplace_back(chunk.position, 1);
                edges.emplace_back(std::int64_t{chunk.position} + tokens, -1);
                continue;
            }
            const std::uint32_t column = chunk.tokens >> abi::kMaskColumnShift;
            const std::uint32_t word = list.masks.at(
                static_cast<std::size_t>(list.requests[item.request_begin + r].request * list.mask_words + column / 2));
            for (unsigned t = 0; t < tokens; ++t) {
                if ((word >> (column % 2 * abi::kChunkTokens + t) & 1) == 0) continue;
                edges.emplace_back(chunk.position + t, 1);
                edges.emplace_back(chunk.position + t + 1, -1);
            }
        }
    }
    if (padding >= in_tile) return "a tile of padding";
    for (unsigned r = 0; r < item.requests; ++r) {
        const auto [request, slot] = list.requests[item.request_begin + r];
        const std::string name = "request " + std::to_string(request);
        if (!forest.request_alive(request)) return name + " is not alive";
        const bool must_see = forest.path_tokens(request) > 0 && !plan.problem.mask;
        if (slot == abi::kUnseen ? sees[r] : !sees[r] && must_see) return name + " has a wrong kUnseen";
        if (slot == abi::kFinal) ++served.finals[static_cast<std::size_t>(request)];
        if (slot < 0) continue;
        if (slot >= list.slots || slot_owner[slot] != -1) return name + " writes slot " + std::to_string(slot) + " once more";
        slot_owner[slot] = request;
    }
    return {};
}

/// Of units of 16 rows: a bit for each warp and chunk. Of the warps that share a block of rows one attends what these see, and each
/// gets as many pairs of the item as the others, or one more; other warps attend nothing.
bool right_for_warps(std::span<const abi::Chunk> chunks, std::size_t in_tile, unsigned warps, unsigned rows) {
    const unsigned blocks = (rows + 15) / 16, parts = warps / blocks;
    std::vector<int> pairs(warps);
    for (std::size_t first = 0; first < chunks.size(); first += in_tile) {
        const auto tile = chunks.subspan(first, in_tile);
        const std::uint64_t words = tile[0].tile_word | std::uint64_t{tile[1].tile_word} << 32;
        const auto attends = [&](unsigned warp, std::size_t c) { return (words >> (warp * in_tile + c) & 1) != 0; };
        for (unsigned warp = 0; warp < warps; ++warp) {
            int own = 0;
            for (std::size_t c = 0; c < in_tile; ++c) own += attends(warp, c);
            if (own > 0 && warp >= parts * blocks) return false;
            pairs[warp] += (own + 1) / 2;
        }
        for (unsigned block = 0; block < blocks; ++block) {
            for (std::size_t c = 0; c < in_tile; ++c) {
                const unsigned begin = block * 16, end = std::min(begin + 16, rows);
                const bool sees = tile[c].row_begin < end && tile[c].row_end > begin && tile[c].row_begin < tile[c].row_end;
                int by = 0;
                for (unsigned part = 0; part < parts; ++part) by += attends(part * blocks + block, c);
                if (by != (sees ? 1 : 0)) return false;
            }
        }
    }
    for (unsigned warp = 0; warp < parts * blocks; ++warp) {
        if (std::abs(pairs[warp] - pairs[warp % blocks]) > 1) return false;
    }
    return true;
}

/// Of units of 64: a tile of which some row sees a key is attended by one of the warpgroups that share that row's block, in turn,
/// others attend nothing, and whole is what all of a block's rows see. (Growth may have made more of it whole.) `units`: of which
/// any share rows; else one a block.
bool right_for_warpgroups(std::span<const abi::Chunk> chunks, std::size_t in_tile, unsigned units, bool share, unsigned rows) {
    const unsigned blocks = (rows + 63) / 64, parts = share ? units / blocks : 1;
    std::vector<int> tiles(units);
    for (std::size_t first = 0; first < chunks.size(); first += in_tile) {
        const std::uint32_t word = chunks[first].tile_word;
        if ((word & 0xffff) >> parts * blocks != 0 || (word >> abi::kWholeShift & ~word) != 0) return false;
        for (unsigned block = 0; block < blocks; ++block) {
            bool some = false, all = true;
            for (unsigned row = block * 64; row < std::min(rows, block * 64 + 64); ++row) {
                for (const abi::Chunk& chunk : chunks.subspan(first, in_tile)) {
                    const bool sees = row >= chunk.row_begin && row < chunk.row_end;
                    some = some || sees;
                    all = all && sees && chunk.tokens == abi::kChunkTokens;
                }
            }
            int by = 0;
            for (unsigned unit = block; unit < parts * blocks; unit += blocks) {
                const bool attends = (word >> unit & 1) != 0;
                by += attends, tiles[unit] += attends;
                if ((word >> abi::kWholeShift >> unit & 1) != 0 && !all) return false;
            }
            if (by > 1 || (some && by == 0)) return false;
        }
    }
    for (unsigned unit = 0; unit < parts * blocks; ++unit) {
        if (std::abs(tiles[unit] - tiles[unit % blocks]) > 1) return false;
    }
    return true;
}

}  // namespace

std::string word_fault_of(const DecodePlan::Impl& plan) {
    const std::size_t in_tile = static_cast<std::size_t>(plan.config.block_kv) / abi::kChunkTokens;
    const auto warps = static_cast<unsigned>(plan.config.warps);
    for (const abi::Item& item : plan.list.items) {
        const auto chunks = std::span<const abi::Chunk>(plan.list.chunks).subspan(item.chunk_begin, item.tiles * in_tile);
        const unsigned rows = item.requests * static_cast<unsigned>(group_of(plan.problem));
        const bool right = plan.config.mainloop == Mainloop::mma
                               ? right_for_warps(chunks, in_tile, warps, rows)
                               : right_for_warpgroups(chunks, in_tile, warps / 4, plan.config.block_kv == 64, rows);
        if (!right) return "words of the item at chunk " + std::to_string(item.chunk_begin);
    }
    return {};
}

std::string fault_of(const DecodePlan::Impl& plan, const Forest& forest) {
    const WorkList& list = plan.list;
    const auto requests = static_cast<std::size_t>(forest.request_capacity());
    Served served{
        .edges = decltype(Served::edges)(requests), .finals = std::vector(requests, 0), .merges = std::vector(requests, 0)};
    std::vector<std::int32_t> slot_owner(static_cast<std::size_t>(list.slots), -1);
    std::vector<int> chunk_uses(list.chunks.size());
    for (std::size_t i = 0; i < list.items.size(); ++i) {
        const std::string fault = read_item(plan, forest, list.items[i], served, slot_owner, chunk_uses);
        if (!fault.empty()) return "item " + std::to_string(i) + ": " + fault;
        if (i > 0 && list.items[i].tiles > list.items[i - 1].tiles)
            return "item " + std::to_string(i) + " is longer than the one before";
    }
    for (const int uses : chunk_uses) {
        if (uses != 1) return "a chunk of " + std::to_string(uses) + " items";
    }
    for (const abi::Merge& merge : list.merges) {
        const std::string name = "merge of request " + std::to_string(merge.request);
        if (merge.slots < 2 || merge.slot_begin < 0 || merge.slot_begin + merge.slots > list.slots) return name + " has bad slots";
        if (!forest.request_alive(merge.request)) return name + ", which is not alive";
        for (std::int32_t s = merge.slot_begin; s < merge.slot_begin + merge.slots; ++s) {
            if (slot_owner[s] != merge.request) return name + " reads slot " + std::to_string(s) + ", not its own or read before";
            slot_owner[s] = -2;
        }
        ++served.merges[static_cast<std::size_t>(merge.request)];
    }
    for (const std::int32_t owner : slot_owner) {
        if (owner != -2) return "a slot of request " + std::to_string(owner) + " that nobody reads or writes";
    }
    for (std::int32_t r = 0; r < forest.request_capacity(); ++r) {
        const std::string name = "request " + std::to_string(r);
        const int results = served.finals[r] + served.merges[r];
        if (results != (forest.request_alive(r) ? 1 : 0)) return name + " gets " + std::to_string(results) + " results";
        if (!forest.request_alive(r)) continue;
        auto& edges = served.edges[r];
        for (std::int32_t id = forest.request_node(r); id >= 0; id = forest.node(id).parent) {
            if (const DraftMask* mask = forest.draft_mask(id)) {
                for (std::int32_t t = 0; t < mask->columns(); ++t) {
                    if (!mask->sees(r - forest.draft_first_request(id), t)) continue;
                    edges.emplace_back(forest.node(id).kv_begin + t, -1);
                    edges.emplace_back(forest.node(id).kv_begin + t + 1, 1);
                }
                continue;
            }
            edges.emplace_back(forest.node(id).kv_begin, -1);
            edges.emplace_back(forest.node(id).kv_begin + forest.node(id).tokens, 1);
        }
        std::sort(edges.begin(), edges.end());
        for (std::size_t i = 0; i < edges.size();) {
            const std::int64_t position = edges[i].first;
            int sum = 0;
            for (; i < edges.size() && edges[i].first == position; ++i) sum += edges[i].second;
            if (sum != 0) return name + " sees other keys than its path from position " + std::to_string(position) + " on";
        }
    }
    const WorkCounts now = list.counts(), room = plan.capacity;
    if (now.items > room.items || now.requests > room.requests || now.chunks > room.chunks || now.merges > room.merges ||
        now.slots > room.slots || now.mask_rows > room.mask_rows || now.mask_words != room.mask_words) {
        return "more than the plan's capacity";
    }
    return word_fault_of(plan);
}

}  // namespace sapwood::support
