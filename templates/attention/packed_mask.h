// SPDX-License-Identifier: Apache-2.0
// The mask of a KV tile that is seen in part, from the runs its keys lie in: a lane makes one word of bits for each of its two
// rows, a bit for each of its columns, so that no per-token array is read and masking costs a bit test an element.
#pragma once

#include "isa/isa.h"
#include "packed_abi.h"

namespace sapwood::kernel {

/// Of a tile that is being worked on; comes with it.
struct alignas(16) TileHeader {
    i32 begin;  // its first key or, where keys are what stays, its first row
    u32 run_begin;
    u32 runs;         // 0: nothing to compare
    u32 head;         // where it varies
    abi::KeyRun run;  // the first one: most tiles have no other
};

/// Of a lane's columns 8 n + 2 (lane % 4) + j, bit 2 n + j, for up to 128 columns: those below `column`.
SAPWOOD_DEVICE u32 columns_below(i32 column, u32 lane) {
    if (column <= 0) return 0;
    const i32 pair = static_cast<i32>(lane % 4 * 2), rest = (column & 7) - pair;
    const i32 count = (column >> 3) * 2 + (rest <= 0 ? 0 : rest >= 2 ? 2 : 1);
    return count >= 32 ? ~0u : (1u << count) - 1;
}

/// Columns of the tile that `row` sees by this run.
SAPWOOD_DEVICE u32 seen_columns(const abi::KeyRun& run, i32 row, i32 key_begin, u32 lane) {
    if (row < run.row_begin || row >= run.row_end) return 0;
    const i32 from = run.key_begin > row - run.last + 1 ? run.key_begin : row - run.last + 1;
    const i32 to = run.key_end < row - run.first + 1 ? run.key_end : row - run.first + 1;
    return columns_below(to - key_begin, lane) & ~columns_below(from - key_begin, lane);
}

/// The same of a tile whose columns are query rows: those from `row_begin` on that see `key`.
SAPWOOD_DEVICE u32 seeing_columns(const abi::KeyRun& run, i32 key, i32 row_begin, u32 lane) {
    if (key < run.key_begin || key >= run.key_end) return 0;
    const i32 from = run.row_begin > key + run.first ? run.row_begin : key + run.first;
    const i32 to = run.row_end < key + run.last ? run.row_end : key + run.last;
    return columns_below(to - row_begin, lane) & ~columns_below(from - row_begin, lane);
}

SAPWOOD_DEVICE abi::KeyRun load_run(const abi::KeyRun* from) {
    const U32x4 a = load_readonly_16(from), b = load_readonly_16(reinterpret_cast<const U32x4*>(from) + 1);
    return {static_cast<i32>(a.x),
            static_cast<i32>(a.y),
            static_cast<i32>(a.z),
            static_cast<i32>(a.w),
            static_cast<i32>(b.x),
            static_cast<i32>(b.y),
            {}};
}

/// -inf where this lane's two rows have no bit.
template <u32 kBlocks>
SAPWOOD_DEVICE void mask_columns(f32 (&s)[kBlocks][4], const u32 (&seen)[2]) {
    static_assert(kBlocks <= 16, "a bit for each of a lane's columns");
    SAPWOOD_UNROLL for (u32 n = 0; n < kBlocks; ++n) {
        SAPWOOD_UNROLL for (u32 j = 0; j < 2; ++j) {
            if ((seen[0] >> (n * 2 + j) & 1) == 0) s[n][j] = -infinity();
            if ((seen[1] >> (n * 2 + j) & 1) == 0) s[n][2 + j] = -infinity();
        }
    }
}

/// Calls visit(run) for every run of a tile.
template <class Visit>
SAPWOOD_DEVICE void each_run(const TileHeader& tile, const abi::KeyRun* runs, const Visit& visit) {
    abi::KeyRun run = tile.run;
    for (u32 i = 0;;) {
        visit(run);
        if (++i >= tile.runs) break;
        run = load_run(runs + tile.run_begin + i);
    }
}

/// What visibility asks beyond the runs: nothing …
struct RunsAlone {
    template <u32 kBlocks>
    SAPWOOD_DEVICE void narrow(u32 (&)[2], i32, i32, u32) const {}
};
/// … or start_q[row] <= end_k[key]. `of_rows` are this array of a tile's rows, `of_columns` that of its columns: start_q and end_k
/// or, where keys are the rows, end_k and start_q. Bounds are kept: rows and columns outside of the arrays have no bits.
template <bool kKeysAreRows>
struct StartEnd {
    const i32 *of_rows, *of_columns;
    i32 rows;  // there are

    template <u32 kBlocks>
    SAPWOOD_DEVICE void narrow(u32 (&seen)[2], i32 row, i32 column_begin, u32 lane) const {
        i32 own[2];
        SAPWOOD_UNROLL for (i32 h = 0; h < 2; ++h) {
            const i32 at = row + h * 8;
            own[h] = static_cast<i32>(load_earlier_4(of_rows + (at < rows ? at : 0)));
        }
        const u32 any = seen[0] | seen[1];
        SAPWOOD_UNROLL for (u32 n = 0; n < kBlocks; ++n) {
            SAPWOOD_UNROLL for (u32 j = 0; j < 2; ++j) {
                const u32 bit = 1u << (n * 2 + j);
                const i32 column = column_begin + static_cast<i32>(n * 8 + lane % 4 * 2 + j);
                const i32 value = static_cast<i32>(load_earlier_4(of_columns + ((any & bit) != 0 ? column : 0)));
                SAPWOOD_UNROLL for (u32 h = 0; h < 2; ++h) {
                    if (kKeysAreRows ? own[h] < value : value < own[h]) seen[h] &= ~bit;
                }
            }
        }
    }
};

/// Whichever of the two a pack's kernel has.
template <bool kArrays, bool kKeysAreRows>
SAPWOOD_DEVICE auto beyond_runs(const i32* of_rows, const i32* of_columns, i32 rows) {
    if constexpr (kArrays) {
        return StartEnd<kKeysAreRows>{of_rows, of_columns, rows};
    } else {
        return RunsAlone{};
    }
}

/// -inf for what the rows `row` and `row + 8` of this lane do not see.
template <u32 kBlocks, class Beyond = RunsAlone>
SAPWOOD_DEVICE void mask_tile(f32 (&s)[kBlocks][4], const TileHeader& tile, const abi::KeyRun* runs, i32 row, u32 lane,
                              const Beyond& beyond = {}) {
    u32 seen[2] = {0, 0};
    each_run(tile, runs, [&](const abi::KeyRun& run) {
        seen[0] |= seen_columns(run, row, tile.begin, lane);
        seen[1] |= seen_columns(run, row + 8, tile.begin, lane);
    });
    beyond.template narrow<kBlocks>(seen, row, tile.begin, lane);
    mask_columns(s, seen);
}
/// The same of a tile whose rows are keys and whose columns are query rows.
template <u32 kBlocks, class Beyond = RunsAlone>
SAPWOOD_DEVICE void mask_transposed_tile(f32 (&s)[kBlocks][4], const TileHeader& tile, const abi::KeyRun* runs, i32 key, u32 lane,
                                         const Beyond& beyond = {}) {
    u32 seen[2] = {0, 0};
    each_run(tile, runs, [&](const abi::KeyRun& run) {
        seen[0] |= seeing_columns(run, key, tile.begin, lane);
        seen[1] |= seeing_columns(run, key + 8, tile.begin, lane);
    });
    beyond.template narrow<kBlocks>(seen, key, tile.begin, lane);
    mask_columns(s, seen);
}

}  // namespace sapwood::kernel
