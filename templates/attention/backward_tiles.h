// SPDX-License-Identifier: Apache-2.0
// The same lists seen from the keys, for a backward pass over a pack with arrays: for each block of keys, or part of one, the row
// tiles some of whose rows may see it. A warp a block, a lane a tile.
#pragma once

#include "attention/array_bounds.h"
#include "attention/packed_mask.h"

namespace sapwood::kernel {

struct BackwardTiles {
    static constexpr i32 kTile = static_cast<i32>(abi::kRowTile);
    static constexpr u32 kFewRuns = 3;  // that all of a block's tiles compare; of many, each tile names its own

    const abi::BackwardTilesParams& params;
    const abi::ArrayBlock block;
    const i32 key_begin, key_end;
    const abi::Bounds ends;  // of all keys of the block: bounds by run would only tell more where sequences meet
    SpanList spans;
    i32 whole_begin = 0, whole_end = 0;  // rows that see every key but for the arrays

    SAPWOOD_DEVICE BackwardTiles(const abi::BackwardTilesParams& p, const abi::ArrayBlock& array_block, const U32x4& key_block)
        : params(p),
          block(array_block),
          key_begin(static_cast<i32>(key_block.x)),
          key_end(key_begin + static_cast<i32>(key_block.y & 0xffff)),
          ends(bounds_of(p.end_k, key_begin, key_end)),
          spans(p.spans + key_block.z, array_block.room, kTile) {}

    /// Tiles in all.
    SAPWOOD_DEVICE u32 make() {
        if (block.runs == 1) {
            const Rows rows = rows_of(load_run(params.runs + block.run_begin));
            // Zeros behind the last key are no keys, whoever would see them.
            if (rows.keys == params.block_kv) whole_begin = rows.whole_begin, whole_end = rows.whole_end;
        }
        bool more = block.tile_begin < block.tile_end;
        for (u32 word = block.tile_begin / 32; more && word * 32 < block.tile_end; ++word) more = cover(word);
        spans.finish();
        return spans.tiles;
    }
    /// What the block adds to, once make() is done.
    SAPWOOD_DEVICE void count_additions() const {
        warp_sync();  // lane 0 has written the spans
        for (u32 s = 0; s < spans.begun; ++s) {
            const U32x4 span = load_earlier_16(spans.to + s);
            u32* additions = params.row_additions + span.x / abi::kRowTile;
            for (u32 tile = lane_id(); tile < span.y; tile += 32) atomic_add_relaxed(additions + tile, 1);
        }
    }

private:
    /// Rows [begin, end) see some of the block's keys in a run, those of [whole_begin, whole_end) all of these.
    struct Rows {
        i32 begin, end, whole_begin, whole_end, keys;
    };
    SAPWOOD_DEVICE Rows rows_of(const abi::KeyRun& run) const {
        const i32 low = run.key_begin > key_begin ? run.key_begin : key_begin;
        const i32 high = (run.key_end < key_end ? run.key_end : key_end) - 1;
        const auto from = [&](i32 key) { return run.row_begin > key + run.first ? run.row_begin : key + run.first; };
        const auto to = [&](i32 key) { return run.row_end < key + run.last ? run.row_end : key + run.last; };
        return {from(low), to(high), from(high), to(low), high + 1 - low};
    }

    /// 32 tiles. False: the list is full.
    SAPWOOD_DEVICE bool cover(u32 word) {
        const u32 tile = word * 32 + lane_id();
        const i32 begin = static_cast<i32>(tile) * kTile, end = begin + kTile;
        const bool inside = tile >= block.tile_begin && tile < block.tile_end;
        u32 first = ~0u, last = 0;  // runs that some row of this lane's tile sees
        for (u32 run = block.run_begin; run < block.run_begin + block.runs; ++run) {
            const Rows rows = rows_of(load_run(params.runs + run));
            if (begin >= rows.end || end <= rows.begin) continue;
            if (first == ~0u) first = run;
            last = run;
        }
        const U32x2 starts = load_earlier_8(params.bounds + (inside ? tile : 0));
        const bool visible = inside && first != ~0u && static_cast<i32>(starts.x) <= ends.high;
        const bool seen_by_all = visible && begin >= whole_begin && end <= whole_end && static_cast<i32>(starts.y) <= ends.low;
        const u32 whole = warp_ballot(seen_by_all);
        for (u32 left = warp_ballot(visible); left != 0;) {
            const u32 at = lowest(left);
            const u32 alike = (whole >> at & 1) != 0 ? whole : left & ~whole;
            u32 count = lowest(~(alike >> at));
            SpanList::Span span = {static_cast<i32>(word * 32 + at) * kTile, 0, 0, 0};
            if ((whole >> at & 1) == 0) {
                span.run_begin = block.run_begin, span.runs = block.runs;
                if (block.runs > kFewRuns) {
                    count = 1;
                    span.run_begin = shfl(first, at);
                    span.runs = shfl(last, at) - span.run_begin + 1;
                }
            }
            span.tiles = count;
            if (!spans.add(span, {span.begin, block.tile_end - word * 32 - at, block.run_begin, block.runs})) return false;
            left = count + at >= 32 ? 0 : left >> (at + count) << (at + count);
        }
        return true;
    }
    /// Lowest bit that is set; 32 if there is none.
    SAPWOOD_DEVICE static u32 lowest(u32 bits) { return bits == 0 ? 32 : 31 - leading_zeros(bits & (~bits + 1)); }
};

SAPWOOD_DEVICE void backward_tiles(const abi::BackwardTilesParams& params) {
    let_later_kernels_start();
    wait_for_earlier_kernels();
    for (u32 b = block_id() * kArrayWarps + warp_id(); b < params.key_block_count; b += grid_size() * kArrayWarps) {
        BackwardTiles list(params, params.blocks[b], load_earlier_16(params.key_blocks + b));
        const u32 tiles = list.make();
        list.count_additions();
        if (lane_id() == 0) store_4(&params.key_blocks[b].tiles, tiles);
    }
}

}  // namespace sapwood::kernel
