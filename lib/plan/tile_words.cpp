// SPDX-License-Identifier: Apache-2.0
#include "plan/tile_words.h"

#include <algorithm>

namespace sapwood {
namespace {

constexpr std::uint32_t kWarpRows = 16;

std::uint32_t rows_of(const abi::Chunk& chunk) { return chunk.row_begin | static_cast<std::uint32_t>(chunk.row_end) << 16; }

/// Which units of 16 rows see which chunks of a tile: abi::Chunk::tile_word.
class SeenByWarps {
public:
    explicit SeenByWarps(std::size_t in_tile) : width_(static_cast<std::uint32_t>(in_tile)) {
        const std::uint64_t units = ~std::uint64_t{0} / ((1u << width_) - 1);  // a bit each
        for (std::uint32_t unit = 0; unit <= kUnits; ++unit)
            below_[unit] = unit * width_ < 64 ? units & ((std::uint64_t{1} << unit * width_) - 1) : units;
    }

    std::uint64_t operator()(std::span<const abi::Chunk> tile) {
        std::uint64_t seen = 0;
        for (std::uint32_t c = 0; c < width_; ++c) seen |= units_of(tile[c]) << c;
        return seen;
    }

private:
    static constexpr std::uint32_t kUnits = 8;  // of a work item, at most

    /// A bit for each unit of the chunk's rows, which are mostly those of the chunk before.
    std::uint64_t units_of(const abi::Chunk& chunk) {
        if (rows_of(chunk) != rows_) {
            rows_ = rows_of(chunk);
            found_ = chunk.row_begin == chunk.row_end
                         ? 0
                         : below_[(chunk.row_end + kWarpRows - 1) / kWarpRows] & ~below_[chunk.row_begin / kWarpRows];
        }
        return found_;
    }

    const std::uint32_t width_;
    std::uint64_t below_[kUnits + 1];  // the bits of so many units
    std::uint32_t rows_ = 0;
    std::uint64_t found_ = 0;
};

/// The same of units of 64 rows. A chunk that is patched later is not whole now: its tile is never called seen entirely, which is
/// slower at most.
void summarise(std::span<abi::Chunk> tile) {
    // Mostly all rows and lengths are those of the first chunk.
    std::uint32_t other = tile[0].tokens ^ abi::kChunkTokens;
    for (const abi::Chunk& chunk : tile) other |= (rows_of(chunk) ^ rows_of(tile[0])) | (chunk.tokens ^ tile[0].tokens);
    if (other == 0 && tile[0].row_begin < tile[0].row_end) {
        tile[0].tile_word = tile[1].tile_word = rows_of(tile[0]);
        return;
    }
    std::uint32_t all_begin = 0, all_end = 0xffff, some_begin = 0xffff, some_end = 0;
    for (const abi::Chunk& chunk : tile) {
        const bool whole = chunk.tokens == abi::kChunkTokens;
        all_begin = std::max<std::uint32_t>(all_begin, chunk.row_begin);
        all_end = whole ? std::min<std::uint32_t>(all_end, chunk.row_end) : 0;
        if (chunk.row_begin == chunk.row_end) continue;
        some_begin = std::min<std::uint32_t>(some_begin, chunk.row_begin);
        some_end = std::max<std::uint32_t>(some_end, chunk.row_end);
    }
    tile[0].tile_word = all_begin < all_end ? all_begin | all_end << 16 : 0;
    tile[1].tile_word = some_begin < some_end ? some_begin | some_end << 16 : 0;
}

}  // namespace

void set_tile_words(std::span<abi::Chunk> chunks, std::size_t in_tile, std::int32_t unit_rows) {
    if (unit_rows > std::int32_t{kWarpRows}) {
        for (std::size_t first = 0; first < chunks.size(); first += in_tile) summarise(chunks.subspan(first, in_tile));
        return;
    }
    SeenByWarps seen_by_warps(in_tile);
    for (std::size_t first = 0; first < chunks.size(); first += in_tile) {
        const std::span<abi::Chunk> tile = chunks.subspan(first, in_tile);
        const std::uint64_t seen = seen_by_warps(tile);
        tile[0].tile_word = static_cast<std::uint32_t>(seen);
        tile[1].tile_word = static_cast<std::uint32_t>(seen >> 32);
    }
}

}  // namespace sapwood
