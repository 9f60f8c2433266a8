// SPDX-License-Identifier: Apache-2.0
// Tiles for warpgroup products: columns of 64 16-bit elements as panels of 128-byte rows, swizzled by 128 bytes, the layout that
// matrix descriptors name (wgmma_panel). Written by cp.async like a Swizzle tile: eight columns of a row touch every bank once.
#pragma once

#include "isa/isa.h"

namespace sapwood::kernel {

/// A tile of kRows rows of kColumns 16-byte columns, based on a multiple of 1024.
template <u32 kColumns, u32 kRows>
struct Panels {
    static_assert(kColumns % 8 == 0 && kRows % 8 == 0);
    static constexpr u32 kPitch = 128;                // between rows
    static constexpr u32 kGroupStride = kRows * 128;  // between groups of eight columns

    SAPWOOD_DEVICE static u32 key(u32 row) { return row & 7; }
    SAPWOOD_DEVICE static u32 offset(u32 row, u32 col) { return col / 8 * kGroupStride + row * kPitch + (col % 8 ^ key(row)) * 16; }
};

}  // namespace sapwood::kernel
