// SPDX-License-Identifier: Apache-2.0
// Visibility by two arrays: bounds of blocks of values, by which whole tiles are told to be seen by nobody, by everybody or in
// part.
#pragma once

#include "isa/isa.h"
#include "packed_abi.h"

namespace sapwood::kernel {

inline constexpr u32 kArrayWarps = abi::kArrayThreads / 32;

/// Bounds of what the lanes of a warp hold.
SAPWOOD_DEVICE abi::Bounds warp_bounds(abi::Bounds mine) {
    SAPWOOD_UNROLL for (u32 mask = 16; mask > 0; mask /= 2) {
        const i32 low = static_cast<i32>(shfl(static_cast<u32>(mine.low), lane_id() ^ mask));
        const i32 high = static_cast<i32>(shfl(static_cast<u32>(mine.high), lane_id() ^ mask));
        if (low < mine.low) mine.low = low;
        if (high > mine.high) mine.high = high;
    }
    return mine;
}
/// Of values[begin] to values[end - 1].
SAPWOOD_DEVICE abi::Bounds bounds_of(const i32* values, i32 begin, i32 end) {
    abi::Bounds mine = {abi::kNoLow, abi::kNoHigh};
    for (i32 i = begin + static_cast<i32>(lane_id()); i < end; i += 32) {
        const i32 value = static_cast<i32>(load_earlier_4(values + i));
        if (value < mine.low) mine.low = value;
        if (value > mine.high) mine.high = value;
    }
    return warp_bounds(mine);
}

SAPWOOD_DEVICE void array_bounds(const abi::ArrayBoundsParams& params) {
    let_later_kernels_start();
    wait_for_earlier_kernels();
    const u32 units = (params.count + params.unit - 1) / params.unit;
    for (u32 u = block_id() * kArrayWarps + warp_id(); u < units; u += grid_size() * kArrayWarps) {
        const u32 begin = u * params.unit, end = min_u32(begin + params.unit, params.count);
        const abi::Bounds bounds = bounds_of(params.values, static_cast<i32>(begin), static_cast<i32>(end));
        if (lane_id() != 0) continue;
        store_8(params.bounds + u, static_cast<u32>(bounds.low), static_cast<u32>(bounds.high));
        if (params.zeros != nullptr) store_4(params.zeros + u, 0);
    }
}

/// Spans of one block on their way out: neighbours that are seen alike become one, and a list that has no more room ends with one
/// span of all that is left, which compares everywhere. All lanes have the same; lane 0 writes.
struct SpanList {
    /// The words of an abi::KeySpan or an abi::RowSpan.
    struct Span {
        i32 begin;
        u32 tiles, run_begin, runs;
    };
    U32x4* to;
    u32 room;
    i32 tile;  // keys or rows of one
    Span last{};
    u32 begun = 0, tiles = 0;

    SAPWOOD_DEVICE SpanList(void* spans, u32 capacity, i32 tile_size)
        : to(static_cast<U32x4*>(spans)), room(capacity), tile(tile_size) {}

    /// False: there was no room, and `rest` has taken its place; nothing may follow.
    SAPWOOD_DEVICE bool add(const Span& next, const Span& rest) {
        if (begun > 0 && next.run_begin == last.run_begin && next.runs == last.runs) {
            const bool before = end_of(next) == last.begin;
            if (before || end_of(last) == next.begin) {
                if (before) last.begin = next.begin;
                last.tiles += next.tiles;
                return true;
            }
        }
        finish();
        const bool fits = ++begun < room;
        last = fits ? next : rest;
        return fits;
    }
    /// Writes the span under way.
    SAPWOOD_DEVICE void finish() {
        if (begun == 0) return;
        tiles += last.tiles;
        if (lane_id() == 0) store_16(to + begun - 1, static_cast<u32>(last.begin), last.tiles, last.run_begin, last.runs);
    }

private:
    SAPWOOD_DEVICE i32 end_of(const Span& span) const { return span.begin + static_cast<i32>(span.tiles) * tile; }
};

}  // namespace sapwood::kernel
