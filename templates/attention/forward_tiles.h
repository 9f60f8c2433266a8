// SPDX-License-Identifier: Apache-2.0
// Tile lists of a pack with arrays, made on the device for every launch: for each block of query rows the KV tiles that some row of
// it may see. The same lists in the same words as the planner's of a pack without arrays, so that the kernel that walks them knows
// no difference. A warp a block; work and memory grow with blocks and bounds, not with tokens.
#pragma once

#include "attention/array_bounds.h"
#include "attention/packed_mask.h"

namespace sapwood::kernel {

/// What the units of 32 keys are to rows whose start_q have these bounds: a bit each, 32 units a word, walked from the last word.
struct UnitWords {
    const abi::Bounds* bounds;
    u32 units;
    abi::Bounds starts{};
    u32 word = ~0u;
    u32 seen = 0, whole = 0;  // of it: some row may see some key; every row sees every key
    u32 ahead_of = ~0u;
    U32x2 ahead{};  // this lane's bounds of the word below, read before they are asked for

    SAPWOOD_DEVICE U32x2 load(u32 w) const {
        const u32 unit = w * 32 + lane_id();
        if (unit >= units) return {static_cast<u32>(abi::kNoLow), static_cast<u32>(abi::kNoHigh)};
        return load_earlier_8(bounds + unit);
    }
    SAPWOOD_DEVICE void begin(const abi::Bounds& of_rows) {
        starts = of_rows;
        word = ~0u;
    }
    SAPWOOD_DEVICE void stand_on(u32 w) {
        if (w == word) return;
        const U32x2 mine = w == ahead_of ? ahead : load(w);
        if (w > 0) ahead = load(w - 1);
        ahead_of = w - 1;
        word = w;
        seen = warp_ballot(static_cast<i32>(mine.y) >= starts.low);
        whole = warp_ballot(static_cast<i32>(mine.x) >= starts.high);
    }
};

/// Bits 0 to `last` of a word.
SAPWOOD_DEVICE u32 bits_up_to(u32 last) { return ~0u >> (31 - last); }

/// Keys of one run that the rows [begin, end) of a block see by it: some row sees those of [begin, end), every row those of
/// [whole_begin, whole_end).
struct KeyPiece {
    i32 top, bottom;  // first and last row of the block in the run
    i32 begin, end, whole_begin, whole_end;
    SAPWOOD_DEVICE KeyPiece(const abi::KeyRun& run, i32 row_begin, i32 row_end) {
        top = run.row_begin > row_begin ? run.row_begin : row_begin;
        bottom = (run.row_end < row_end ? run.row_end : row_end) - 1;
        const auto from = [&](i32 row) { return run.key_begin > row - run.last + 1 ? run.key_begin : row - run.last + 1; };
        const auto to = [&](i32 row) { return run.key_end < row - run.first + 1 ? run.key_end : row - run.first + 1; };
        begin = from(top), end = to(bottom);
        whole_begin = from(bottom), whole_end = to(top);
        if (run.row_begin > row_begin || run.row_end < row_end) whole_end = begin;
    }
};

struct ForwardTiles {
    const abi::ForwardTilesParams& params;
    const abi::ArrayBlock block;
    const i32 row_begin, row_end, kv;
    UnitWords words;
    SpanList spans;
    i32 lowest = 0;             // key that some row sees
    i32 covered = abi::kNoLow;  // keys from here on are
    u32 run = 0;                // the one under way
    bool full = false;          // of spans

    SAPWOOD_DEVICE ForwardTiles(const abi::ForwardTilesParams& p, const abi::ArrayBlock& array_block, const U32x4& query_block)
        : params(p),
          block(array_block),
          row_begin(static_cast<i32>(query_block.x)),
          row_end(row_begin + static_cast<i32>(query_block.y)),
          kv(p.block_kv),
          words{p.bounds, p.units},
          spans(p.spans + query_block.z, array_block.room, p.block_kv) {}

    /// Tiles in all.
    SAPWOOD_DEVICE u32 make() {
        if (block.runs > 0) lowest = piece(block.run_begin).begin;
        for (run = block.run_begin + block.runs; run-- > block.run_begin && !full;) {
            const KeyPiece keys = piece(run);
            if (keys.begin >= keys.end || keys.begin >= covered) continue;
            words.begin(bounds_of(params.start_q, keys.top, keys.bottom + 1));
            cover(keys);
        }
        spans.finish();
        return spans.tiles;
    }

private:
    SAPWOOD_DEVICE KeyPiece piece(u32 which) const { return {load_run(params.runs + which), row_begin, row_end}; }

    /// Tiles of one piece from its last key backwards, wherever they begin: the fewest that hold all units that are seen.
    SAPWOOD_DEVICE void cover(const KeyPiece& keys) {
        i32 end = keys.end < covered ? keys.end : covered;
        while (end > keys.begin && !full) {
            const u32 unit = static_cast<u32>(end - 1) / abi::kKeyUnit;
            words.stand_on(unit / 32);
            const u32 seen = words.seen & bits_up_to(unit % 32);
            const u32 first = words.word * 32;  // unit of the word
            if (seen == 0) {
                end = static_cast<i32>(first * abi::kKeyUnit);
                continue;
            }
            const u32 top = 31 - leading_zeros(seen);
            const i32 unit_end = static_cast<i32>((first + top + 1) * abi::kKeyUnit);
            if (unit_end < end) end = unit_end;
            if (end <= keys.begin) break;
            const u32 in_a_row = leading_zeros(~(words.whole << (31 - top)));  // whole units down from `top`
            const i32 stretch = static_cast<i32>((first + top + 1 - in_a_row) * abi::kKeyUnit);
            const i32 whole_from = stretch > keys.whole_begin ? stretch : keys.whole_begin;
            if (end <= keys.whole_end && end - whole_from >= kv) {
                const i32 tiles = (end - whole_from) / kv;
                emit(end - tiles * kv, static_cast<u32>(tiles), true);
                end -= tiles * kv;
                continue;
            }
            const i32 begin = end - kv;
            bool whole = end <= keys.whole_end && begin >= keys.whole_begin && in_a_row > top;
            if (whole) {  // so far as this word says: the tile begins in the one below
                words.stand_on(words.word - 1);
                const u32 others = bits_up_to(static_cast<u32>(begin) / abi::kKeyUnit % 32) >> 1;
                whole = (words.whole | others) == ~0u;
            }
            emit(begin, 1, whole);
            end = begin;
        }
    }

    SAPWOOD_DEVICE void emit(i32 begin, u32 tiles, bool whole) {
        covered = begin;
        SpanList::Span span = {begin, tiles, 0, 0};
        if (!whole) {
            u32 low = run;
            while (low > block.run_begin && load_run(params.runs + low - 1).key_end > begin) --low;
            span.run_begin = low;
            span.runs = run - low + 1;
        }
        const i32 end = begin + static_cast<i32>(tiles) * kv, left = (end - lowest + kv - 1) / kv;
        full = !spans.add(span, {end - left * kv, static_cast<u32>(left), block.run_begin, run - block.run_begin + 1});
    }
};

SAPWOOD_DEVICE void forward_tiles(const abi::ForwardTilesParams& params) {
    let_later_kernels_start();
    wait_for_earlier_kernels();
    for (u32 b = block_id() * kArrayWarps + warp_id(); b < params.query_block_count; b += grid_size() * kArrayWarps) {
        const abi::ArrayBlock& block = params.blocks[b];
        const u32 tiles = ForwardTiles(params, block, load_earlier_16(params.query_blocks + b)).make();
        if (lane_id() == 0) store_4(&params.query_blocks[b].tiles, tiles);
    }
}

}  // namespace sapwood::kernel
