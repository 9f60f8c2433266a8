// SPDX-License-Identifier: Apache-2.0
// Tile lists that the device makes from start_q and end_k, on the host target, against their definition pair by pair.
#include <doctest/doctest.h>

#include <random>

#include "attention/backward_layout.h"
#include "kernel/array_cases.h"
#include "plan/array_list.h"
#include "plan/packed_list.h"
#include "support/host_kernel.h"

using namespace sapwood;
using namespace sapwood::test;

namespace {

constexpr const char* kBounds = R"(
    #include "attention/array_bounds.h"
    SAPWOOD_ENTRY(test_kernel, sapwood::abi::ArrayBoundsParams, 128, 1) { array_bounds(params); })";
constexpr const char* kForward = R"(
    #include "attention/forward_tiles.h"
    SAPWOOD_ENTRY(test_kernel, sapwood::abi::ForwardTilesParams, 128, 1) { forward_tiles(params); })";

constexpr const char* kBackward = R"(
    #include "attention/backward_tiles.h"
    SAPWOOD_ENTRY(test_kernel, sapwood::abi::BackwardTilesParams, 128, 1) { backward_tiles(params); })";

std::vector<abi::Bounds> bounds_of(const std::vector<std::int32_t>& values, unsigned unit) {
    std::vector<abi::Bounds> bounds((values.size() + unit - 1) / unit);
    const abi::ArrayBoundsParams params = {values.data(), bounds.data(), static_cast<unsigned>(values.size()), unit};
    if (!bounds.empty()) support::run_on_host(kBounds, {.grid = 2, .block = abi::kArrayThreads}, params);
    return bounds;
}

/// Lists of a case as a launch makes them, and as the plan would without arrays.
struct Made {
    Pack pack;
    PackedList plain, list;
    ArrayList arrays;

    Made(const PackedCase& which, std::int32_t block_q, std::int32_t block_kv) : pack(which.pack()) {
        plain.build(pack, block_q, block_kv);
        list.build(pack, block_q, block_kv);
        arrays.build(pack, list);
        list.spans.resize(static_cast<std::size_t>(arrays.spans));
        const auto bounds = bounds_of(which.end_k, abi::kKeyUnit);
        const abi::ForwardTilesParams params = {.start_q = which.start_q.data(),
                                                .bounds = bounds.data(),
                                                .runs = list.runs.data(),
                                                .blocks = arrays.blocks.data(),
                                                .query_blocks = list.blocks.data(),
                                                .spans = list.spans.data(),
                                                .query_block_count = static_cast<unsigned>(list.blocks.size()),
                                                .units = static_cast<unsigned>(bounds.size()),
                                                .block_kv = block_kv};
        support::run_on_host(kForward, {.grid = 3, .block = abi::kArrayThreads}, params);
    }
};

bool in_run(const abi::KeyRun& run, std::int64_t row, std::int64_t key) {
    return key >= run.key_begin && key < run.key_end && row >= run.row_begin && row < run.row_end && row >= key + run.first &&
           row < key + run.last;
}

struct Numbers {
    std::int64_t tiles = 0, partial = 0, empty = 0, longest = 0;
};

/// Every visible pair is in one tile; what a tile seen whole has is visible; no tile reaches beyond what the causal mask allows.
Numbers check(const PackedCase& which, std::int32_t block_q, std::int32_t block_kv) {
    const Made made(which, block_q, block_kv);
    const oracle::Sees sees = which.sees();
    const std::int64_t keys = made.pack.keys();
    std::vector<int> found(static_cast<std::size_t>(made.pack.rows() * keys));
    Numbers numbers;
    std::int64_t faults = 0;
    for (std::size_t b = 0; b < made.list.blocks.size(); ++b) {
        const abi::QueryBlock& block = made.list.blocks[b];
        faults += block.tiles > made.plain.blocks[b].tiles || block.row_begin != made.plain.blocks[b].row_begin;
        std::size_t at = block.span_begin;
        for (unsigned tiles = 0; tiles < block.tiles; ++at) {
            REQUIRE(at - block.span_begin < made.arrays.blocks[b].room);
            const abi::KeySpan& span = made.list.spans[at];
            REQUIRE(span.tiles > 0);
            tiles += span.tiles;
            numbers.tiles += span.tiles, numbers.partial += span.runs != 0 ? span.tiles : 0;
            for (std::int64_t t = 0; t < span.tiles; ++t) {
                bool some = false;
                for (std::int64_t key = span.key_begin + t * block_kv, end = key + block_kv; key < end; ++key) {
                    for (std::int64_t row = block.row_begin; row < block.row_begin + static_cast<std::int64_t>(block.rows); ++row) {
                        const bool there = key >= 0 && key < keys, visible = there && sees(row, key);
                        bool allowed = span.runs == 0;
                        for (unsigned i = 0; i < span.runs && !allowed; ++i)
                            allowed = in_run(made.list.runs[span.run_begin + i], row, key);
                        if (span.runs == 0) faults += !visible;
                        if (visible && allowed) ++found[static_cast<std::size_t>(row * keys + key)];
                        some |= visible;
                    }
                }
                numbers.empty += !some;
            }
        }
        numbers.longest = std::max(numbers.longest, static_cast<std::int64_t>(at - block.span_begin));
    }
    for (std::int64_t row = 0; row < made.pack.rows(); ++row)
        for (std::int64_t key = 0; key < keys; ++key)
            faults += found[static_cast<std::size_t>(row * keys + key)] != static_cast<int>(sees(row, key));
    CHECK_MESSAGE(faults == 0, which.name);
    return numbers;
}

/// The same of the lists of a backward pass, whose blocks of `block_kv` keys are in parts of `longest` tiles. Pairs of the first
/// keys, whole blocks.
Numbers check_backward(const PackedCase& which, int block_kv, std::int64_t longest, std::int64_t first_keys = 1 << 30) {
    constexpr std::int64_t kRows = abi::kRowTile;
    const Pack pack = which.pack();
    BackwardList plain, list;
    for (BackwardList* each : {&plain, &list}) each->build(pack, block_kv, [&](auto, std::int64_t) { return longest; });
    ArrayList arrays;
    arrays.build(pack, list);
    list.spans.resize(static_cast<std::size_t>(arrays.spans));
    const auto bounds = bounds_of(which.start_q, abi::kRowTile);
    std::vector<unsigned> additions(bounds.size()), expected(bounds.size());
    const abi::BackwardTilesParams params = {.end_k = which.end_k.data(),
                                             .bounds = bounds.data(),
                                             .runs = list.runs.data(),
                                             .blocks = arrays.blocks.data(),
                                             .key_blocks = list.blocks.data(),
                                             .spans = list.spans.data(),
                                             .row_additions = additions.data(),
                                             .key_block_count = static_cast<unsigned>(list.blocks.size()),
                                             .block_kv = block_kv};
    support::run_on_host(kBackward, {.grid = 3, .block = abi::kArrayThreads}, params);
    const oracle::Sees sees = which.sees();
    const std::int64_t keys = std::min(pack.keys(), first_keys);
    std::vector<int> found(static_cast<std::size_t>(pack.rows() * keys));
    Numbers numbers;
    std::int64_t faults = 0;
    for (std::size_t b = 0; b < list.blocks.size(); ++b) {
        const abi::KeyBlock& block = list.blocks[b];
        faults += block.tiles > plain.blocks[b].tiles;
        const abi::RowSpan* one = list.spans.data() + block.span_begin;
        for (unsigned tiles = 0; tiles < block.tiles; tiles += one++->tiles)
            for (unsigned t = 0; t < one->tiles; ++t) ++expected.at(static_cast<std::size_t>(one->row_begin / kRows) + t);
        if (block.key_begin >= keys) continue;
        std::size_t at = block.span_begin;
        for (unsigned tiles = 0; tiles < block.tiles; ++at) {
            REQUIRE(at - block.span_begin < arrays.blocks[b].room);
            const abi::RowSpan& span = list.spans[at];
            REQUIRE(span.tiles > 0);
            faults += span.row_begin % kRows != 0;
            tiles += span.tiles;
            numbers.tiles += span.tiles, numbers.partial += span.runs != 0 ? span.tiles : 0;
            for (std::int64_t t = 0; t < span.tiles; ++t) {
                bool some = false;
                const std::int64_t begin = span.row_begin + t * kRows;
                for (std::int64_t key = block.key_begin; key < block.key_begin + block_kv; ++key) {
                    for (std::int64_t row = begin; row < begin + kRows; ++row) {
                        const bool there = key < keys && row < pack.rows(), visible = there && sees(row, key);
                        bool allowed = span.runs == 0;
                        for (unsigned i = 0; i < span.runs && !allowed; ++i)
                            allowed = in_run(list.runs[span.run_begin + i], row, key);
                        if (span.runs == 0) faults += !visible;
                        if (visible && allowed) ++found[static_cast<std::size_t>(row * keys + key)];
                        some |= visible;
                    }
                }
                numbers.empty += !some;
            }
        }
        numbers.longest = std::max(numbers.longest, static_cast<std::int64_t>(at - block.span_begin));
    }
    for (std::int64_t row = 0; row < pack.rows(); ++row)
        for (std::int64_t key = 0; key < keys; ++key)
            faults += found[static_cast<std::size_t>(row * keys + key)] != static_cast<int>(sees(row, key));
    CHECK_MESSAGE(faults == 0, which.name);
    CHECK(additions == expected);
    return numbers;
}

}  // namespace

TEST_CASE("array tiles: every visible pair is in one tile, and whole tiles are visible") {
    for (const PackedCase& which : array_cases())
        check(which, which.problem.head_dim % 3 == 0 ? 64 : 128, which.problem.head_dim == 64 ? 128 : 64);
    std::mt19937 random(9);
    for (std::uint32_t round = 0; round < 30; ++round) {
        PackedCase which = {"round"};
        which.cu_q = which.cu_k = {0};
        for (unsigned i = random() % 5; i-- > 0;) {
            which.cu_q.push_back(which.cu_q.back() + static_cast<std::int32_t>(random() % 300));
            which.cu_k.push_back(which.cu_k.back() + static_cast<std::int32_t>(random() % 3 == 0 ? 0 : random() % 500));
        }
        if (which.cu_q.back() == 0) continue;
        CAPTURE(round);
        which = with_any_arrays(which, round, -2, 2, 1 + static_cast<std::int32_t>(random() % 300));
        check(which, round % 2 ? 128 : 64, 32 << round % 3);
        check_backward(which, 128 >> round % 3, 24);
    }
    for (const PackedCase& which : array_cases())
        if (std::string_view(which.name) == "more spans than room") CHECK(check(which, 128, 64).longest == ArrayList::kMostSpans);
}

TEST_CASE("array tiles: every visible pair is in one tile of a backward pass, and whole tiles are visible") {
    for (const PackedCase& which : array_cases())
        if (which.cu_k.back() < 4000) check_backward(which, abi::kBackwardKeys, 24);
    // More spans than room: row tiles in turns whole and not, all below the first key block.
    PackedCase which = {"more spans than room", {}, {}, {0, 9000}, {0, 9000}};
    which.mask = {.causal = true, .dfs_arrays = true};
    for (std::int32_t i = 0; i < 9000; ++i) {
        which.start_q.push_back(i / 64 % 2 == 0 ? 0 : i % 2);
        which.end_k.push_back(i % 3 == 0 ? 1 : 0);
    }
    CHECK(check_backward(which, abi::kBackwardKeys, 1 << 20, 128).longest == ArrayList::kMostSpans);
}

TEST_CASE("array tiles: a tree is walked in as few tiles as from its segments") {
    // Segments that begin on units of keys: what the bounds say is then exact.
    for (const std::uint32_t seed : {1u, 2u, 3u}) {
        std::vector<Segment> segments = random_trees(seed, 3000, 300);
        for (Segment& segment : segments) segment.tokens = segment.tokens / abi::kKeyUnit * abi::kKeyUnit;
        const PackedCase trees = {"", {}, segments};
        PackedList list;
        list.build(trees.pack(), 128, 128);
        const Numbers numbers = check(as_arrays(trees), 128, 128);
        CHECK(numbers.empty == 0);
        CHECK(numbers.tiles == list.tiles);
        CHECK(numbers.partial <= list.partial_tiles);
        for (const int block_kv : {32, 64, 128}) {
            BackwardList rows;
            rows.build(trees.pack(), block_kv, [](auto, std::int64_t) { return 24; });
            const Numbers backward = check_backward(as_arrays(trees), block_kv, 24);
            CAPTURE(block_kv);
            CHECK(backward.tiles <= rows.tiles + rows.tiles / 8);
            CHECK(backward.partial <= rows.partial_tiles + rows.tiles / 8);
        }
    }
    // A prompt and responses that do not: one tile a block more at most.
    std::vector<Segment> segments = {{-1, 1000}};
    for (int i = 0; i < 20; ++i) segments.push_back({0, 150 + i % 7});
    const PackedCase trees = {"", {}, segments};
    PackedList list;
    list.build(trees.pack(), 128, 128);
    const Numbers numbers = check(as_arrays(trees), 128, 128);
    CHECK(numbers.tiles <= list.tiles + static_cast<std::int64_t>(list.blocks.size()));
    CHECK(numbers.empty == 0);
}
