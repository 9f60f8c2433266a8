// SPDX-License-Identifier: Apache-2.0
// Tile lists of packs against their definition: the oracle is asked of every pair who sees whom.
#include <doctest/doctest.h>

#include <chrono>
#include <map>
#include <random>

#include "oracle/packed_oracle.h"
#include "plan/backward_list.h"
#include "plan/packed_list.h"
#include "sapwood/error.h"

using namespace sapwood;

namespace {

struct Random {
    std::mt19937 engine;
    std::int64_t operator()(std::int64_t low, std::int64_t high) {
        return std::uniform_int_distribution<std::int64_t>(low, high)(engine);
    }
};

std::vector<Segment> random_segments(Random& random) {
    const std::int64_t longest = random(0, 2) == 0 ? 5 : random(0, 1) == 0 ? 40 : 200;
    std::vector<Segment> segments;
    std::vector<std::int32_t> path;
    for (std::int64_t left = random(0, 600); left >= 0;) {
        const std::int64_t up = random(0, 3) == 0 ? static_cast<std::int64_t>(path.size()) : random(0, 2);
        for (std::int64_t i = 0; i < up && !path.empty(); ++i) path.pop_back();
        const std::int64_t tokens = std::min(left, random(0, longest));
        segments.push_back({path.empty() ? -1 : path.back(), tokens});
        path.push_back(static_cast<std::int32_t>(segments.size()) - 1);
        left -= std::max<std::int64_t>(1, tokens);
    }
    return segments;
}

bool in_run(const abi::KeyRun& run, std::int64_t row, std::int64_t key) {
    return key >= run.key_begin && key < run.key_end && row >= run.row_begin && row < run.row_end && row >= key + run.first &&
           row < key + run.last;
}

/// Every visible pair in exactly one tile, no invisible one anywhere: the list is what the kernel makes of it, pair by pair.
void check_list(const Pack& pack, const oracle::Sees& sees, std::int32_t block_q, std::int32_t block_kv) {
    PackedList list;
    list.build(pack, block_q, block_kv);
    std::vector<int> seen(static_cast<std::size_t>(pack.rows() * pack.keys()));
    std::vector<int> covered(static_cast<std::size_t>(pack.rows()));
    std::int64_t tiles = 0, last = 1 << 30, pairs = 0, faults = 0;
    for (const abi::QueryBlock& block : list.blocks) {
        CHECK(block.tiles <= last);
        last = block.tiles;
        for (unsigned r = 0; r < block.rows; ++r) ++covered[static_cast<std::size_t>(block.row_begin) + r];
        std::uint32_t span_at = block.span_begin;
        for (unsigned in_block = 0; in_block < block.tiles;) {
            const abi::KeySpan span = list.spans[span_at++];
            REQUIRE(span.tiles > 0);
            for (unsigned t = 0; t < span.tiles; ++t, ++in_block) {
                std::int64_t some = 0;
                for (std::int64_t key = span.key_begin + static_cast<std::int64_t>(t) * block_kv, end = key + block_kv; key < end;
                     ++key) {
                    for (std::int64_t row = block.row_begin; row < block.row_begin + static_cast<std::int64_t>(block.rows); ++row) {
                        bool visible = span.runs == 0;
                        for (unsigned i = 0; i < span.runs && !visible; ++i)
                            visible = in_run(list.runs[span.run_begin + i], row, key);
                        if (!visible) continue;
                        ++some;
                        if (key < 0 || key >= pack.keys()) {
                            ++faults;
                        } else {
                            ++seen[static_cast<std::size_t>(row * pack.keys() + key)];
                        }
                    }
                }
                faults += some == 0;  // a tile for nothing
            }
            tiles += span.tiles;
        }
    }
    for (std::int64_t row = 0; row < pack.rows(); ++row) {
        faults += covered[static_cast<std::size_t>(row)] != 1;
        for (std::int64_t key = 0; key < pack.keys(); ++key) {
            const bool visible = sees(row, key);
            pairs += visible;
            faults += seen[static_cast<std::size_t>(row * pack.keys() + key)] != static_cast<int>(visible);
        }
    }
    CHECK(faults == 0);
    CHECK(tiles == list.tiles);
    CHECK(pairs == pack.visible_pairs());
}

/// Turns of a row tile, and of a block's parts, count up in the order of the blocks: nobody waits for a later one.
std::int64_t faults_of_turns(const BackwardList& list) {
    std::map<int, std::uint32_t> made, parts;  // additions, by row tile and by slot
    std::int64_t faults = list.block_turns.size() != list.blocks.size();
    faults += std::ssize(list.turns) != list.tiles;
    for (std::size_t b = 0; b < list.blocks.size() && faults == 0; ++b) {
        const abi::KeyBlock& block = list.blocks[b];
        faults += list.block_turns[b].part != (block.slot == abi::KeyBlock::kNoSlot ? 0 : parts[block.slot]++);
        std::uint32_t turn = list.block_turns[b].first, span_at = block.span_begin;
        for (const std::uint32_t end = turn + block.tiles; turn < end; ++span_at)
            for (unsigned t = 0; t < list.spans[span_at].tiles; ++t, ++turn)
                faults += list.turns[turn] != made[list.spans[span_at].row_begin + static_cast<int>(t * abi::kRowTile)]++;
    }
    return faults;
}

/// The same of the lists of a backward pass, parts of blocks included.
void check_backward_list(const Pack& pack, const oracle::Sees& sees, std::int64_t share, BlockOrder order,
                         std::int32_t block_keys = 128, bool sums_for_all = false) {
    constexpr std::int32_t kRows = abi::kRowTile;
    BackwardList list;
    list.build(
        pack, block_keys, [&](auto, std::int64_t all) { return all / share; }, order, sums_for_all);
    if (order != BlockOrder::longest_first) list.number_turns();
    std::vector<int> seen(static_cast<std::size_t>(pack.rows() * pack.keys()));
    std::map<int, int> covered;  // key blocks
    std::map<int, int> parts;
    std::int64_t tiles = 0, last = 1 << 30, faults = 0;
    for (const abi::KeyBlock& block : list.blocks) {
        const std::int64_t first = block.tiles > 0 ? list.spans[block.span_begin].row_begin : -1;
        if (order != BlockOrder::there_and_back) {
            const bool by_rows = order == BlockOrder::by_rows;
            CHECK((by_rows ? first : block.tiles) <= last);
            last = by_rows ? first : block.tiles;
        }
        covered[block.key_begin] = block.keys;
        ++parts[block.key_begin];
        if (block.slot != abi::KeyBlock::kNoSlot) {
            REQUIRE(block.slot < list.slots.size());
            faults += list.slots[block.slot].key_begin != block.key_begin || list.slots[block.slot].keys != block.keys;
        }
        std::uint32_t span_at = block.span_begin;
        for (unsigned in_block = 0; in_block < block.tiles;) {
            const abi::RowSpan span = list.spans[span_at++];
            REQUIRE(span.tiles > 0);
            faults += span.row_begin % kRows != 0;
            for (unsigned t = 0; t < span.tiles; ++t, ++in_block) {
                const std::int64_t row_begin = span.row_begin + static_cast<std::int64_t>(t) * kRows;
                for (std::int64_t key = block.key_begin; key < block.key_begin + block_keys; ++key) {
                    for (std::int64_t row = row_begin; row < row_begin + kRows; ++row) {
                        bool visible = span.runs == 0;
                        for (unsigned i = 0; i < span.runs && !visible; ++i)
                            visible = in_run(list.runs[span.run_begin + i], row, key);
                        if (!visible) continue;
                        if (row >= pack.rows() || key >= pack.keys()) {
                            ++faults;
                        } else {
                            ++seen[static_cast<std::size_t>(row * pack.keys() + key)];
                        }
                    }
                }
            }
            tiles += span.tiles;
        }
    }
    for (const abi::KeyBlock& block : list.blocks)
        faults += (parts[block.key_begin] > 1 || (sums_for_all && block.tiles > 0)) != (block.slot != abi::KeyBlock::kNoSlot);
    if (order == BlockOrder::there_and_back) faults += std::ssize(covered) != std::ssize(list.blocks);  // none is cut
    std::int64_t keys = 0;
    for (const auto& [begin, count] : covered) keys += count;
    CHECK(keys == pack.keys());
    for (std::int64_t row = 0; row < pack.rows(); ++row)
        for (std::int64_t key = 0; key < pack.keys(); ++key)
            faults += seen[static_cast<std::size_t>(row * pack.keys() + key)] != static_cast<int>(sees(row, key));
    if (order != BlockOrder::longest_first) faults += faults_of_turns(list);
    CHECK(faults == 0);
    CHECK(tiles == list.tiles);
}

void check_backward_lists(BlockOrder order) {
    Random random{std::mt19937(3)};
    for (int round = 0; round < 40; ++round) {
        CAPTURE(round);
        const auto segments = random_segments(random);
        check_backward_list(Pack::from_segments(segments), oracle::sees_segments(segments), 1 + random(0, 8), order,
                            32 << round % 3, round % 4 == 0);
    }
    for (int round = 0; round < 40; ++round) {
        CAPTURE(round);
        std::vector<std::int32_t> q = {0}, k = {0};
        for (std::int64_t i = random(0, 6); i > 0; --i) {
            q.push_back(q.back() + static_cast<std::int32_t>(random(0, 150)));
            k.push_back(k.back() + static_cast<std::int32_t>(random(0, 3) == 0 ? 0 : random(0, 150)));
        }
        PackedMask mask = {.causal = random(0, 1) == 0};
        if (random(0, 1) == 0) mask.window_left = static_cast<std::int32_t>(random(0, 90));
        if (random(0, 2) == 0) mask.window_right = static_cast<std::int32_t>(random(0, 90));
        check_backward_list(Pack::from_cu_seqlens(q, k, mask), oracle::sees_sequences(q, k, mask), 4, order, 32 << round % 3,
                            round % 4 == 1);
    }
    // One block that every response sees, far above its share.
    std::vector<Segment> segments = {{-1, 100}};
    for (int i = 0; i < 40; ++i) segments.push_back({0, 60 + i % 9});
    for (const std::int64_t share : {4, 30, 1000})
        check_backward_list(Pack::from_segments(segments), oracle::sees_segments(segments), share, order);
    BackwardList list;
    list.build(
        Pack::from_segments(segments), 128, [](auto, std::int64_t) { return 24; }, order);
    CHECK(list.slots.size() == (order == BlockOrder::there_and_back ? 0 : 1));
}

}  // namespace

TEST_CASE("backward lists: every pair that is visible is in one tile of one part, and no other") {
    check_backward_lists(BlockOrder::longest_first);
}
TEST_CASE("backward lists: the same by rows, and every turn is that of a block that was drawn before") {
    check_backward_lists(BlockOrder::by_rows);
}
TEST_CASE("backward lists: the same there and back") { check_backward_lists(BlockOrder::there_and_back); }
TEST_CASE("backward lists: there and back a tree's blocks come from late keys to early ones and back, tree by tree") {
    BackwardList list;
    const std::vector<Segment> segments = {{-1, 500}, {-1, 640}, {1, 128}, {1, 128}};
    list.build(
        Pack::from_segments(segments), 128, [](auto, std::int64_t) { return 1; }, BlockOrder::there_and_back);
    std::vector<int> begins;
    for (const abi::KeyBlock& block : list.blocks) begins.push_back(block.key_begin);
    // Block 384 has keys of both, so that they are worked on like one; a longer first one would stand apart.
    CHECK(begins == std::vector<int>{1280, 1024, 768, 512, 256, 0, 128, 384, 640, 896, 1152});
    list.build(
        Pack::from_segments(std::vector<Segment>{{-1, 512}, {-1, 512}}), 128, [](auto, std::int64_t) { return 1; },
        BlockOrder::there_and_back);
    begins.clear();
    for (const abi::KeyBlock& block : list.blocks) begins.push_back(block.key_begin);
    CHECK(begins == std::vector<int>{896, 640, 512, 768, 384, 128, 0, 256});
}

TEST_CASE("packed lists: every pair that a tree allows is in one tile, and no other") {
    Random random{std::mt19937(1)};
    for (int round = 0; round < 60; ++round) {
        const auto segments = random_segments(random);
        const Pack pack = Pack::from_segments(segments);
        CAPTURE(round);
        check_list(pack, oracle::sees_segments(segments), round % 2 ? 128 : 64, round % 3 ? 64 : 32);
    }
}

TEST_CASE("packed lists: every pair that a varlen mask allows is in one tile, and no other") {
    Random random{std::mt19937(2)};
    for (int round = 0; round < 80; ++round) {
        std::vector<std::int32_t> q = {0}, k = {0};
        for (std::int64_t i = random(0, 6); i > 0; --i) {
            q.push_back(q.back() + static_cast<std::int32_t>(random(0, 150)));
            k.push_back(k.back() + static_cast<std::int32_t>(random(0, 3) == 0 ? 0 : random(0, 150)));
        }
        PackedMask mask = {.causal = random(0, 1) == 0};
        if (random(0, 1) == 0) mask.window_left = static_cast<std::int32_t>(random(0, 90));
        if (random(0, 2) == 0) mask.window_right = static_cast<std::int32_t>(random(0, 90));
        CAPTURE(round);
        check_list(Pack::from_cu_seqlens(q, k, mask), oracle::sees_sequences(q, k, mask), round % 2 ? 128 : 48, 64);
    }
}

TEST_CASE("packed lists: whole tiles are spans, however long the pack") {
    const std::vector<Segment> segments = {{-1, 1 << 20}, {0, 4096}, {0, 4096}};
    PackedList list;
    list.build(Pack::from_segments(segments), 128, 128);
    CHECK(list.blocks.size() == (1 << 13) + 64);
    CHECK(list.spans.size() <= 3 * list.blocks.size());
    CHECK(list.partial_tiles == static_cast<std::int64_t>(list.blocks.size()));  // the diagonal
    CHECK(list.tiles == (8192ll * 8193 + 2 * (32 * 33)) / 2 + 64 * 8192);
}

TEST_CASE("packs: what is not depth first or does not fit is refused by name") {
    const auto text = [](auto&& make) {
        try {
            make();
        } catch (const Error& error) {
            return std::string(error.what());
        }
        return std::string();
    };
    CHECK(text([] {
              Pack::from_segments(std::vector<Segment>{{-1, 4}, {0, 4}, {-1, 4}, {1, 4}});
          }).find("segment 3 has parent 1") != std::string::npos);
    CHECK(text([] { Pack::from_segments(std::vector<Segment>{{0, 4}}); }).find("segment 0 has parent 0") != std::string::npos);
    CHECK(text([] { Pack::from_segments(std::vector<Segment>{{-1, -2}}); }).find("has -2 tokens") != std::string::npos);
    CHECK(text([] { Pack::from_segments(std::vector<Segment>{{-1, 1ll << 40}}); }).find("at most") != std::string::npos);
    const std::vector<std::int32_t> good = {0, 3, 5}, falls = {0, 3, 2}, late = {1, 3}, one = {0, 3};
    CHECK(text([&] { Pack::from_cu_seqlens(falls, good, {}); }).find("cu_q[2] = 2 is below cu_q[1] = 3") != std::string::npos);
    CHECK(text([&] { Pack::from_cu_seqlens(late, good, {}); }).find("cu_q must begin with 0") != std::string::npos);
    CHECK(text([&] { Pack::from_cu_seqlens(good, one, {}); }).find("cu_q has 3 entries and cu_k 2") != std::string::npos);
    CHECK(Pack::from_cu_seqlens(good, good, {}).visible_pairs() == 9 + 4);
    CHECK(Pack::from_segments({}).rows() == 0);
}
