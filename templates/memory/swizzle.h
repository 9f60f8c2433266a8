// SPDX-License-Identifier: Apache-2.0
// Rows of 16-bit elements in shared memory, without padding, so placed that eight consecutive rows read at one logical 16-byte
// column (ldmatrix) or one row written by consecutive lanes (cp.async) touch every bank once.
#pragma once

#include "isa/isa.h"

namespace sapwood::kernel {

/// A tile with rows of kColumns 16-byte columns.
template <u32 kColumns>
struct Swizzle {
    static_assert(kColumns % 4 == 0);
    static constexpr u32 kPitch = kColumns * 16;

    /// Key of a row: the columns of an aligned group of 8 (or, for pitches of 64 bytes modulo 128, of 4) are permuted by XOR with
    /// it.
    SAPWOOD_DEVICE static u32 key(u32 row) { return kColumns % 8 == 0 ? row & 7 : (row >> 1) & 3; }
    /// Byte offset of logical column `column` of a row whose key is `key`.
    SAPWOOD_DEVICE static u32 column(u32 column, u32 key) { return (column ^ key) * 16; }
    SAPWOOD_DEVICE static u32 offset(u32 row, u32 col) { return row * kPitch + column(col, key(row)); }
};

}  // namespace sapwood::kernel
