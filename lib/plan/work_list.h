// SPDX-License-Identifier: Apache-2.0
// The device work list of a plan: blocks cut into work items of about equal cost, longest first, in the layout of templates/abi.h.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "abi.h"
#include "plan/cover.h"

namespace sapwood {

/// What a block of the cover asks of the workers, in equivalent bytes of one worker's stream (see ChunkCost).
struct BlockSize {
    std::int64_t chunks = 0, tiles = 1, requests = 0;
    double crowded = 0, alone = 0;  // cost of its chunks with all workers streaming, and with few
    double paced = 0;               // crowded, or that of the slowest of neighbours that load the same keys at the same time
    double seen = 0;                // requests that see a chunk, on average
};

/// How much a work item may cost, in equivalent bytes of one worker's stream, and what that choice promises.
struct Split {
    std::vector<BlockSize> sizes;  // of the cover's blocks, in their order
    double item_cost = 0;
    double makespan = 0;    // microseconds, by the model
    double even_share = 0;  // of the cover's work for each worker: no split of this cover takes less
};

struct SplitInput {
    std::int32_t kv_heads = 1;
    std::int32_t group = 1;
    std::int32_t resident_blocks = 1;  // grid
    std::int32_t sms = 1;
    std::int32_t block_kv = 64;
    std::int32_t unit_rows = 16;   // query rows of the warps that multiply together
    std::int32_t units = 8;        // of these, a work item
    bool share_rows = true;        // units do, where there are more of them than the rows need
    std::int32_t ring_keys = 384;  // that the stages of a work item hold
    std::int32_t aimed = 0;        // DecodeConfig::split; 0 = choose
};

/// Time of one chunk in a block, in equivalent bytes: of its load, or of the arithmetic of all units of rows that see it.
struct ChunkTime {
    double load, arithmetic;
    double held;  // of the arithmetic, where the ring holds nothing for other units meanwhile; else 0
    /// `load_share`: of the load's time with all workers at work.
    double at(double load_share) const { return std::max({load * load_share, arithmetic, held}); }
    /// If all units were busy.
    double busy() const { return std::max(load, arithmetic); }
};
/// What a chunk of an entry takes in a block.
struct ChunkCost {
    double first_read = 0, again = 0, unit = 0;                          // `unit`: while all units multiply
    std::int32_t group = 1, unit_shift = 4, units = 8, ring_keys = 384;  // units of 1 << unit_shift query rows
    std::int32_t units_of(std::int32_t requests) const { return (requests * group + (1 << unit_shift) - 1) >> unit_shift; }
    /// What a chunk costs of a run that is longer than the ring, if the rows of one unit see it: the units that share these rows
    /// multiply alone, as the ring holds nothing for the others.
    double held(const Block& block) const;
    /// `held`: of the block.
    ChunkTime operator()(const ForestOrder::Entry& entry, const Block& block, double held) const;
};
ChunkCost chunk_cost(const CostModel& model, const SplitInput& input);

/// Items that a block is cut into.
std::int64_t pieces_of(double block_cost, double item_cost, std::int64_t tiles);

/// What there is to do for each SM: query rows, tiles of 64 rows and 64 keys, and the time of the arithmetic over that of the
/// loads, as the configuration of `input` has it.
struct RowLoad {
    double rows = 0, tiles = 0, arithmetic_to_loads = 0;
    /// Of single warps. Work for warpgroups: enough query rows to fill their 64, and more arithmetic than hides behind the loads.
    /// Less of it suffices where rows see the same keys, as those of drafts do. From the 45 FastTree cases and spec.json's short
    /// list on an H100: of 85, two lose more than 3 % against the other loop (4 and 7 %).
    /// Where K and V are widened on the way (`widens`), that sets the pace of thin work: from the same cases with e4m3.
    bool heavy(bool drafts, bool widens) const;
    /// Of warpgroups with 64 keys. Work for their tiles of 128 keys, if most rows see whole tiles. From the row-heavy cases of
    /// spec.json on an H100.
    bool very_heavy() const;
};
RowLoad row_load(const ForestOrder& order, const CostModel& model, const SplitInput& input);

/// No cover of this width has a smaller even share: each entry is loaded by as many blocks as its requests fill, at least.
double least_share(const ForestOrder& order, const CostModel& model, const SplitInput& input);

/// Chooses the item length for a cover: short items balance the blocks of the grid, long ones have fewer partial results.
Split choose_split(const ForestOrder& order, const Cover& cover, const CostModel& model, const SplitInput& input);

struct WorkCounts {
    std::int64_t items = 0, requests = 0, chunks = 0, merges = 0, slots = 0;
    std::int64_t mask_rows = 0, mask_words = 0;  // rows of Q, words each; 0 without masks
    std::int64_t gather = 0;
};

/// The units of an item's query rows: 16 for a warp, 64 for a warpgroup.
class RowUnits {
public:
    RowUnits() = default;
    RowUnits(std::int32_t unit_rows, std::int32_t rows) : of_warps_(unit_rows == 16), rows_(static_cast<std::uint32_t>(rows)) {}

    static constexpr std::uint32_t kSome = (1u << abi::kWholeShift) - 1;
    /// Bit `unit` of kSome: some of its rows see the chunk. Of warpgroups, bit abi::kWholeShift + `unit`: all of them see 16 keys.
    /// A chunk that is patched later is not whole now: its tile is never called seen entirely, which is slower at most.
    std::uint32_t that_see(const abi::Chunk& chunk) const {
        if (chunk.row_begin == chunk.row_end) return 0;
        if (of_warps_) return range(chunk.row_begin / 16, (chunk.row_end + 15) / 16);
        const std::uint32_t end = (chunk.row_end + 63) / 64, some = range(chunk.row_begin / 64, end);
        if (chunk.tokens != abi::kChunkTokens) return some;
        return some | range((chunk.row_begin + 63) / 64, chunk.row_end == rows_ ? end : chunk.row_end / 64) << abi::kWholeShift;
    }

private:
    static std::uint32_t range(std::uint32_t begin, std::uint32_t end) { return ((1u << end) - 1) & ~((1u << begin) - 1); }
    bool of_warps_ = true;
    std::uint32_t rows_ = 0;
};

/// Items, requests and chunks, host side. Growth inside the last chunk of a node is patched through last_chunks.
class WorkList {
public:
    std::vector<abi::Item> items;
    std::vector<abi::ItemRequest> requests;
    std::vector<abi::Chunk> chunks;
    std::vector<abi::Merge> merges;
    std::int64_t slots = 0;
    std::int64_t loaded_tokens = 0;    // of all chunks, as built: what is patched in later is not counted
    std::vector<std::uint32_t> masks;  // [rows of Q, mask_words], of drafts whose masks are known here
    std::int64_t mask_words = 0, mask_rows = 0;
    std::vector<std::uint32_t> gather;  // KV positions that gathered chunks list

    /// Rebuilds everything; keeps the vectors' memory.
    void build(const ForestOrder& order, const Cover& cover, const CostModel& model, const SplitInput& input, const Split& split,
               std::size_t node_capacity);
    /// The mask rows of all drafts, `words` of 32 tokens each.
    void build_masks(const ForestOrder& order, std::int64_t words, std::size_t rows);

    WorkCounts counts() const {
        return {.items = static_cast<std::int64_t>(items.size()),
                .requests = static_cast<std::int64_t>(requests.size()),
                .chunks = static_cast<std::int64_t>(chunks.size()),
                .merges = static_cast<std::int64_t>(merges.size()),
                .slots = slots,
                .mask_rows = mask_rows,
                .mask_words = mask_words,
                .gather = static_cast<std::int64_t>(gather.size())};
    }

    /// `count` more tokens on a node: true and patched if they fit the last chunk of every item that loads the node, else false and
    /// unchanged.
    bool grow(std::int32_t node, std::int32_t count);
    std::size_t changed_begin = 0, changed_end = 0;  // chunks patched since the last reset

private:
    struct LastChunk {
        std::uint32_t chunk;
        std::int32_t next;  // -1 ends the list of a node
    };
    struct Run {  // a stretch of one entry inside an item
        std::int32_t entry;
        std::int32_t request_begin, request_end;
        std::int64_t token_begin, tokens;
        bool ends;  // holds the entry's last token
    };
    void emit_item(const ForestOrder& order, std::span<const Run> runs, const SplitInput& input);
    void resolve_slots(const ForestOrder& order);

    struct Stream {  // runs of one item, written in order, and where the next chunk comes from
        std::vector<const Run*> runs;
        std::size_t run = 0;
        std::int64_t left = 0;       // chunks of that run; 0: no run is left
        std::int64_t plain = 0;      // of these, those before the last one that nothing masks
        std::int64_t for_turns = 0;  // chunks that take turns with those of other streams; the rest comes last
        abi::Chunk next{};           // as it is if it is not the run's last and nothing masks it
        const ForestOrder::Entry* entry = nullptr;
    };
    void begin_run(const ForestOrder& order, Stream& stream, std::int32_t hull_begin, std::int32_t group);
    void write(Stream& stream, std::int64_t count);
    /// Writes up to `room` chunks of a stream; how many they were.
    std::int64_t take(const ForestOrder& order, Stream& stream, std::int64_t room, std::int32_t hull_begin, std::int32_t group);
    void finish_run(const Stream& stream);
    void mask_chunks(const Stream& stream, abi::Chunk* first, std::int64_t count, std::int32_t group);
    static constexpr std::size_t kQueues = 8;  // row blocks of a work item
    static constexpr std::size_t kShared = 0, kOwn = 1, kNarrow = 2;
    Stream streams_[kNarrow + kQueues];
    RowUnits units_;             // of the item that is being written
    abi::Chunk* end_ = nullptr;  // of the chunks written so far, while building
    std::vector<std::int32_t> last_of_node_;
    std::vector<LastChunk> last_chunks_;
    std::vector<std::int32_t> parts_;     // of a request, by depth-first position
    std::vector<std::int32_t> position_;  // of the request of each entry of `requests`
};

}  // namespace sapwood
