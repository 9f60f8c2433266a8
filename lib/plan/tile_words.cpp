// SPDX-License-Identifier: Apache-2.0
#include "plan/tile_words.h"

#include <array>
#include <bit>

namespace sapwood {
namespace {

constexpr std::uint32_t kWarpgroupRows = 64;

/// Bit `unit * width` for each unit of a set of eight.
template <std::uint32_t kWidth>
constexpr auto kSpread = [] {
    std::array<std::uint64_t, 256> spread{};
    for (std::uint32_t set = 0; set < 256; ++set) {
        for (std::uint32_t unit = 0; unit < 8; ++unit) spread[set] |= std::uint64_t{set >> unit & 1} << unit * kWidth;
    }
    return spread;
}();

/// Which blocks of 16 rows see which chunks of a tile: a bit `block * chunks of a tile + chunk`.
template <std::uint32_t kWidth>
std::uint64_t seen_by_rows(std::span<const abi::Chunk> tile) {
    std::uint64_t seen = 0;
    for (std::uint32_t c = 0; c < kWidth; ++c) seen |= kSpread<kWidth>[tile[c].tile_word & 0xff] << c;
    return seen;
}

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

template <std::uint32_t kWidth>
void set_warps_words(std::span<abi::Chunk> chunks, std::uint32_t blocks, std::uint32_t parts) {
    SharedByWarps shared_by_warps(kWidth, blocks, parts);
    for (std::size_t first = 0; first < chunks.size(); first += kWidth) {
        const std::span<abi::Chunk> tile = chunks.subspan(first, kWidth);
        const std::uint64_t seen = seen_by_rows<kWidth>(tile), words = parts > 1 ? shared_by_warps(seen) : seen;
        tile[0].tile_word = static_cast<std::uint32_t>(words);
        tile[1].tile_word = static_cast<std::uint32_t>(words >> 32);
        for (std::uint32_t c = 2; c < kWidth; ++c) tile[c].tile_word = 0;
    }
}

/// Warpgroups that share rows take tiles in turn.
template <std::uint32_t kWidth>
void set_warpgroups_words(std::span<abi::Chunk> chunks, std::uint32_t blocks, std::uint32_t parts) {
    std::uint32_t turn = 0;
    for (std::size_t first = 0; first < chunks.size(); first += kWidth) {
        const std::span<abi::Chunk> tile = chunks.subspan(first, kWidth);
        std::uint32_t some = 0, all = ~0u;
        for (abi::Chunk& chunk : tile) {
            some |= chunk.tile_word;
            all &= chunk.tile_word;
            chunk.tile_word = 0;
        }
        tile[0].tile_word = ((some & RowUnits::kSome) | (all & ~RowUnits::kSome)) << turn * blocks;
        turn = turn + 1 == parts ? 0 : turn + 1;
    }
}

}  // namespace

void set_tile_words(std::span<abi::Chunk> chunks, std::size_t in_tile, const SplitInput& input, std::int32_t item_rows) {
    const auto rows = static_cast<std::uint32_t>(item_rows), unit_rows = static_cast<std::uint32_t>(input.unit_rows);
    const std::uint32_t blocks = (rows + unit_rows - 1) / unit_rows;
    const std::uint32_t parts = input.share_rows ? static_cast<std::uint32_t>(input.units) / blocks : 1;
    const auto set = [&]<std::uint32_t kWidth>() {
        (unit_rows == kWarpgroupRows ? set_warpgroups_words<kWidth> : set_warps_words<kWidth>)(chunks, blocks, parts);
    };
    if (in_tile == 2) return set.operator()<2>();
    if (in_tile == 4) return set.operator()<4>();
    set.operator()<8>();
}

}  // namespace sapwood
