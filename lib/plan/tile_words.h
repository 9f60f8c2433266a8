// SPDX-License-Identifier: Apache-2.0
// What the first two chunks of a tile say about all of it, so that compute warps need not look at each.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "abi.h"
#include "plan/work_list.h"

namespace sapwood {

/// Fills in abi::Chunk::tile_word of the tiles, of `in_tile` chunks each, of an item of `item_rows` query rows.
void set_tile_words(std::span<abi::Chunk> chunks, std::size_t in_tile, const SplitInput& input, std::int32_t item_rows);

}  // namespace sapwood
