// SPDX-License-Identifier: Apache-2.0
#include "plan/tile_words.h"

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstring>

namespace sapwood {
namespace {

constexpr std::uint32_t kWarpRows = 16, kWarpgroupRows = 64;

std::uint32_t rows_of(const abi::Chunk& chunk) { return chunk.row_begin | static_cast<std::uint32_t>(chunk.row_end) << 16; }

/// As they lie there, for a comparison of both at once.
std::uint64_t rows_and_tokens(const abi::Chunk& chunk) {
    static_assert(offsetof(abi::Chunk, tokens) == offsetof(abi::Chunk, row_begin) + 4);
    std::uint64_t bytes;
    std::memcpy(&bytes, reinterpret_cast<const std::byte*>(&chunk) + offsetof(abi::Chunk, row_begin), sizeof bytes);
    return bytes;
}

/// Which blocks of 16 rows see which chunks of a tile: a bit `block * chunks of a tile + chunk`.
class SeenByRows {
public:
    explicit SeenByRows(std::size_t in_tile) : width_(static_cast<std::uint32_t>(in_tile)) {
        const std::uint64_t blocks = ~std::uint64_t{0} / ((1u << width_) - 1);  // a bit each
        for (std::uint32_t block = 0; block <= kBlocks; ++block)
            below_[block] = block * width_ < 64 ? blocks & ((std::uint64_t{1} << block * width_) - 1) : blocks;
    }

    std::uint64_t operator()(std::span<const abi::Chunk> tile) const {
        std::uint64_t seen = 0;
        for (std::uint32_t c = 0; c < width_; ++c) seen |= blocks_of(tile[c]) << c;
        return seen;
    }

private:
    static constexpr std::uint32_t kBlocks = 8;  // of a work item, at most

    /// A bit for each block of the chunk's rows; none of padding, whose rows are 0 to 0.
    std::uint64_t blocks_of(const abi::Chunk& chunk) const {
        return below_[(chunk.row_end + kWarpRows - 1) / kWarpRows] & ~below_[chunk.row_begin / kWarpRows];
    }

    const std::uint32_t width_;
    std::uint64_t below_[kBlocks + 1];  // the bits of so many blocks
};

/// Hands the chunks that a block of rows sees to the warps that share these rows, two at a time, in turn. Chunks that only other
/// rows see have no turn: whose it would be is a matter of how the item's keys are mixed, and could be the same warp each time.
class SharedByWarps {
public:
    /// `blocks` of rows, `parts` warps each (a power of two).
    SharedByWarps(std::size_t in_tile, std::uint32_t blocks, std::uint32_t parts)
        : width_(static_cast<std::uint32_t>(in_tile)), blocks_(blocks), parts_(parts) {
        for (std::uint32_t turn = 0; turn < parts; ++turn) whole_[turn] = share(all(), turn);
    }

    /// The words of a tile: a bit `warp * chunks of a tile + chunk`, warps part-major.
    std::uint64_t operator()(std::uint64_t seen) {
        std::uint64_t words = 0;
        for (std::uint32_t block = 0; block < blocks_; ++block) {
            const auto own = static_cast<std::uint32_t>(seen >> block * width_) & all();
            std::uint32_t& turn = turn_[block];
            words |= (own == all() ? whole_[turn] : share(own, turn)) << block * width_;
            turn = (turn + (static_cast<std::uint32_t>(std::popcount(own)) + 1) / 2) % parts_;
        }
        return words;
    }

private:
    std::uint32_t all() const { return (1u << width_) - 1; }

    std::uint64_t share(std::uint32_t seen, std::uint32_t turn) const {
        std::uint64_t words = 0;
        for (; seen != 0; ++turn) {
            const std::uint32_t rest = seen & (seen - 1), next = rest & (rest - 1);
            words |= std::uint64_t{seen ^ next} << turn % parts_ * blocks_ * width_;
            seen = next;
        }
        return words;
    }

    const std::uint32_t width_, blocks_, parts_;
    std::uint64_t whole_[8];  // of a block that sees all of a tile, by its turn
    std::uint32_t turn_[8] = {};
};

/// Of a tile: rows that see every key (none if one is not there), and the hull of those that see some.
struct TileRows {
    std::uint32_t all_begin = 0, all_end = 0xffff, some_begin = 0xffff, some_end = 0;

    /// If all chunks are full, and seen by the rows of this one.
    explicit TileRows(const abi::Chunk& chunk)
        : all_begin(chunk.row_begin), all_end(chunk.row_end), some_begin(chunk.row_begin), some_end(chunk.row_end) {}
    /// A chunk that is patched later is not whole now: its tile is never called seen entirely, which is slower at most.
    explicit TileRows(std::span<const abi::Chunk> tile) {
        for (const abi::Chunk& chunk : tile) {
            const bool whole = chunk.tokens == abi::kChunkTokens;
            all_begin = std::max<std::uint32_t>(all_begin, chunk.row_begin);
            all_end = whole ? std::min<std::uint32_t>(all_end, chunk.row_end) : 0;
            if (chunk.row_begin == chunk.row_end) continue;
            some_begin = std::min<std::uint32_t>(some_begin, chunk.row_begin);
            some_end = std::max<std::uint32_t>(some_end, chunk.row_end);
        }
    }
};

/// Which warpgroups attend an item's tiles, one after the other. Those that share rows take tiles in turn.
class SharedByWarpgroups {
public:
    /// `blocks` of 64 rows, `parts` warpgroups each.
    SharedByWarpgroups(std::uint32_t rows, std::uint32_t blocks, std::uint32_t parts)
        : blocks_(blocks), parts_(parts), every_row_(rows << 16) {
        for (std::uint32_t block = 0; block < blocks; ++block) {
            end_[block] = std::min((block + 1) * kWarpgroupRows, rows);
            whole_ |= (1u | 1u << abi::kWholeShift) << block;
        }
    }

    std::uint32_t operator()(std::span<const abi::Chunk> tile) {
        const std::uint32_t word = first_word_of(tile) << turn_ * blocks_;
        turn_ = turn_ + 1 == parts_ ? 0 : turn_ + 1;
        return word;
    }

private:
    /// If it were the first part's turn.
    std::uint32_t first_word_of(std::span<const abi::Chunk> tile) const {
        // Mostly all rows and lengths are those of the first chunk.
        const std::uint64_t first = rows_and_tokens(tile[0]);
        std::uint64_t other = tile[0].tokens ^ abi::kChunkTokens;
        for (const abi::Chunk& chunk : tile.subspan(1)) other |= rows_and_tokens(chunk) ^ first;
        if (other != 0) return word_of(TileRows(tile));
        return rows_of(tile[0]) == every_row_ ? whole_ : word_of(TileRows(tile[0]));
    }

    /// Without a branch: neighbouring tiles differ.
    std::uint32_t word_of(const TileRows& tile) const {
        std::uint32_t word = 0;
        for (std::uint32_t block = 0; block < kBlocks; ++block) {
            const std::uint32_t begin = block * kWarpgroupRows, end = end_[block];
            const bool some = static_cast<int>(tile.some_begin < end) & static_cast<int>(tile.some_end > begin);
            const bool all = static_cast<int>(tile.all_begin <= begin) & static_cast<int>(tile.all_end >= end);
            word |= static_cast<std::uint32_t>(some) * (1u | static_cast<std::uint32_t>(all) << abi::kWholeShift) << block;
        }
        return word;
    }

    static constexpr std::uint32_t kBlocks = 2;  // of a work item, at most
    std::uint32_t end_[kBlocks] = {};            // of the rows of a block; 0 if there is none
    const std::uint32_t blocks_, parts_, every_row_;
    std::uint32_t whole_ = 0, turn_ = 0;
};

}  // namespace

void set_tile_words(std::span<abi::Chunk> chunks, std::size_t in_tile, const SplitInput& input, std::int32_t item_rows) {
    const auto rows = static_cast<std::uint32_t>(item_rows), unit_rows = static_cast<std::uint32_t>(input.unit_rows);
    const std::uint32_t blocks = (rows + unit_rows - 1) / unit_rows;
    const std::uint32_t parts = input.share_rows ? static_cast<std::uint32_t>(input.units) / blocks : 1;
    if (unit_rows == kWarpgroupRows) {
        SharedByWarpgroups shared_by_warpgroups(rows, blocks, parts);
        for (std::size_t first = 0; first < chunks.size(); first += in_tile)
            chunks[first].tile_word = shared_by_warpgroups(chunks.subspan(first, in_tile));
        return;
    }
    const SeenByRows seen_by_rows(in_tile);
    SharedByWarps shared_by_warps(in_tile, blocks, parts);
    for (std::size_t first = 0; first < chunks.size(); first += in_tile) {
        const std::span<abi::Chunk> tile = chunks.subspan(first, in_tile);
        const std::uint64_t seen = seen_by_rows(tile), words = parts > 1 ? shared_by_warps(seen) : seen;
        tile[0].tile_word = static_cast<std::uint32_t>(words);
        tile[1].tile_word = static_cast<std::uint32_t>(words >> 32);
    }
}

}  // namespace sapwood
