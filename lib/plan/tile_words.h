// SPDX-License-Identifier: Apache-2.0
// What the first two chunks of a tile say about all of it, so that compute warps need not look at each.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "abi.h"

namespace sapwood {

/// Fills in abi::Chunk::tile_word of an item's tiles, of `in_tile` chunks each. `unit_rows`, `units`: as SplitInput has them;
/// `rows`: query rows of the item.
void set_tile_words(std::span<abi::Chunk> chunks, std::size_t in_tile, std::int32_t unit_rows, std::int32_t units,
                    std::int32_t rows);

}  // namespace sapwood
