// SPDX-License-Identifier: Apache-2.0
// Tiles for warpgroup products: columns of 64 16-bit elements as panels of 128-byte rows, swizzled by 128 bytes, the layout that
// matrix descriptors name (WgmmaOperand). Written by cp.async like a Swizzle tile: eight columns of a row touch every bank once.
#pragma once

#include "isa/isa.h"

namespace sapwood::kernel {

/// A tile of kRows rows of kColumns 16-byte columns, based on a multiple of 1024.
template <u32 kColumns, u32 kRows>
struct Panels {
    static_assert(kColumns % 8 == 0 && kRows % 8 == 0);
    static constexpr u32 kPitch = 128;                // between rows
    static constexpr u32 kGroupStride = kRows * 128;  // between groups of eight columns
    static constexpr u32 kEightRows = 1024;           // between groups of eight rows

    SAPWOOD_DEVICE static constexpr u32 row(u32 index) { return index * kPitch; }
    SAPWOOD_DEVICE static u32 key(u32 row) { return row & 7; }
    SAPWOOD_DEVICE static u32 offset(u32 row, u32 col) { return col / 8 * kGroupStride + row * kPitch + (col % 8 ^ key(row)) * 16; }
};

/// The same columns brick by brick: eight rows of the first panel, of the second, …, then the next eight rows, so that any eight
/// rows that lie in a row are one load of the copy engine, whose time is by loads where these are short (docs/performance.md).
template <u32 kColumns>
struct Bricks {
    static_assert(kColumns % 8 == 0);
    static constexpr u32 kGroupStride = 1024;          // between groups of eight columns
    static constexpr u32 kEightRows = kColumns * 128;  // between groups of eight rows

    SAPWOOD_DEVICE static constexpr u32 row(u32 index) { return index / 8 * kEightRows + index % 8 * 128; }
    SAPWOOD_DEVICE static u32 key(u32 row) { return row & 7; }
    SAPWOOD_DEVICE static u32 offset(u32 index, u32 col) {
        return row(index) + col / 8 * kGroupStride + (col % 8 ^ key(index)) * 16;
    }
};

}  // namespace sapwood::kernel
