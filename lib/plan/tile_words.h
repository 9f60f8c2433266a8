// SPDX-License-Identifier: Apache-2.0
// What the first two chunks of a tile say about all of it, so that compute warps need not look at each. Made in two steps, because
// the first is the same for all chunks of a run: until its tile's words are made, each chunk's word holds who sees it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "abi.h"
#include "plan/work_list.h"

namespace sapwood {

/// Fills in abi::Chunk::tile_word of the tiles, of `in_tile` chunks each, of an item of `item_rows` query rows. Every chunk's word
/// holds RowUnits::that_see; padding's is 0.
void set_tile_words(std::span<abi::Chunk> chunks, std::size_t in_tile, const SplitInput& input, std::int32_t item_rows);

}  // namespace sapwood
