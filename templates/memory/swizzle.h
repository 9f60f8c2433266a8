// SPDX-License-Identifier: Apache-2.0
// Rows of 16-bit elements, or of bytes, in shared memory, without padding, so placed that eight consecutive rows read at one
// logical 16-byte column (ldmatrix) or one row written by consecutive lanes (cp.async) touch every bank once.
#pragma once

#include "isa/isa.h"

namespace sapwood::kernel {

/// A tile with rows of kColumns 16-byte columns.
template <u32 kColumns>
struct Swizzle {
    static_assert(kColumns % 2 == 0);
    static constexpr u32 kPitch = kColumns * 16;
    static constexpr u32 kGroupStride = 128;  // between groups of eight columns, where there are whole ones

    SAPWOOD_DEVICE static constexpr u32 row(u32 index) { return index * kPitch; }

    /// Key of a row: the columns of an aligned group of 8 (or, for pitches of 64 bytes modulo 128, of 4; of 32 or 96, of 2) are
    /// permuted by XOR with it.
    SAPWOOD_DEVICE static u32 key(u32 row) {
        return kColumns % 8 == 0 ? row & 7 : kColumns % 4 == 0 ? (row >> 1) & 3 : (row >> 2) & 1;
    }
    /// Byte offset of logical column `column` of a row whose key is `key`.
    SAPWOOD_DEVICE static u32 column(u32 column, u32 key) { return (column ^ key) * 16; }
    /// Pairs of columns after which the permutation repeats: pair p of a row lies kPeriod * 32 bytes behind pair p - kPeriod.
    static constexpr u32 kPeriod = kColumns % 8 == 0 ? 4 : kColumns % 4 == 0 ? 2 : 1;

    SAPWOOD_DEVICE static u32 offset(u32 row, u32 col) { return row * kPitch + column(col, key(row)); }
};

/// Addresses of column 2 p + `odd` of one row for p = 0, 1, …: one register a pair of the period, the rest are constants that go
/// into the instructions. Rows further down by a multiple of 8 have the same keys and are a constant away too.
template <class Tile>
struct RowAddresses {
    u32 pair[Tile::kPeriod];
    SAPWOOD_DEVICE RowAddresses(u32 tile, u32 row, u32 odd) {
        SAPWOOD_UNROLL for (u32 p = 0; p < Tile::kPeriod; ++p) pair[p] = tile + Tile::offset(row, p * 2 + odd);
    }
    SAPWOOD_DEVICE u32 at(u32 p, u32 rows_down) const {
        return pair[p % Tile::kPeriod] + p / Tile::kPeriod * Tile::kPeriod * 32 + rows_down * Tile::kPitch;
    }
};

}  // namespace sapwood::kernel
