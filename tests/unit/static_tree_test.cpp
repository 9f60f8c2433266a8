// SPDX-License-Identifier: Apache-2.0
// Static trees: what rows see by definition, FST's own tensors and golden counts, plans read back.
#include <doctest/doctest.h>

#include <array>
#include <map>

#include "plan/node_chunks.h"
#include "plan/static_plan.h"
#include "sapwood/error.h"
#include "support/fst_tree.h"
#include "support/list_reader.h"
#include "support/offline_limits.h"
#include "support/random_drafts.h"

using namespace sapwood;
using support::Dice;

namespace {

std::vector<std::int32_t> path_of(const std::vector<std::int32_t>& parents, std::int32_t row) {
    std::vector<std::int32_t> path;
    for (std::int32_t i = row; i >= 0; i = parents[static_cast<std::size_t>(i)]) path.push_back(i);
    std::sort(path.begin(), path.end());
    return path;
}

/// Reads a plan back as the kernel does: the KV positions that each query row sees, rising; empty text if every row of the launch
/// is written exactly once.
std::string read(const DecodePlan::Impl& plan, std::map<std::int64_t, std::vector<std::int64_t>>& seen) {
    const WorkList& list = plan.list;
    const unsigned group = static_cast<unsigned>(plan.problem.q_heads / plan.problem.kv_heads);
    const auto in_tile = static_cast<std::size_t>(plan.config.block_kv) / abi::kChunkTokens;
    for (const abi::Item& item : list.items) {
        for (unsigned r = 0; r < item.requests; ++r) {
            const auto [request, slot] = list.requests[item.request_begin + r];
            if (slot != abi::kFinal || seen.contains(request)) return "row " + std::to_string(request) + " is written twice";
            std::vector<std::int64_t>& keys = seen[request];
            for (std::size_t c = item.chunk_begin; c < item.chunk_begin + item.tiles * in_tile; ++c) {
                const abi::Chunk& chunk = list.chunks[c];
                if (r * group < chunk.row_begin || r * group >= chunk.row_end) continue;
                const unsigned column = chunk.tokens >> abi::kMaskColumnShift;
                for (unsigned t = 0; t < (chunk.tokens & abi::kTokensMask); ++t) {
                    if (chunk.tokens & abi::kMasked) {
                        const std::uint32_t word = list.masks.at(static_cast<std::size_t>(request * list.mask_words + column / 2));
                        if ((word >> (column % 2 * 16 + t) & 1) == 0) continue;
                    }
                    keys.push_back(chunk.tokens & abi::kGathered ? list.gather.at(chunk.position + t)
                                                                 : std::int64_t{chunk.position} + t);
                }
            }
            std::sort(keys.begin(), keys.end());
        }
    }
    return "";
}

}  // namespace

TEST_CASE("static tree: FST's trees have the published numbers of nodes and of unique ancestors a block") {
    struct Golden {
        std::int32_t depth, rows;
        std::size_t most64, most128;
    };
    for (const Golden& golden :
         {Golden{7, 1024, 28, 49}, {8, 2048, 29, 50}, {9, 4096, 31, 52}, {10, 8192, 32, 53}, {11, 16384, 34, 55}}) {
        CAPTURE(golden.depth);
        const std::vector<std::int32_t> parents = support::fst_parents(golden.depth);
        CHECK(std::ssize(parents) == golden.rows - 4);
        const StaticTree tree = StaticTree::from_parents(parents);
        for (const auto& [block_m, most] : {std::pair{64, golden.most64}, {128, golden.most128}}) {
            std::size_t found = 0;
            StaticTree::Block block;
            for (std::int32_t begin = 0; begin < tree.rows(); begin += block_m) {
                const std::int32_t end = std::min(begin + block_m, tree.rows());
                tree.block(begin, end, block);
                // The published planner counts a row's strict ancestors; so do we.
                found = std::max(found, block.all.size() + block.some.size());
            }
            CHECK(found == most);
        }
    }
}

TEST_CASE("static tree: FST's three tensors give what the parents give, pads and too few ancestor slots told apart") {
    for (const std::int32_t depth : {3, 6, 7}) {
        const std::vector<std::int32_t> parents = support::fst_parents(depth);
        const auto rows = static_cast<std::int32_t>(parents.size()) + 4;  // the four pad rows too
        const support::FstTensors tensors = support::fst_tensors(parents, rows, 128, 64);
        const StaticTree tree = StaticTree::from_fst(tensors.ancestor_idx, tensors.ancestor_mask, tensors.leaf_idx, rows, 128, 64);
        REQUIRE(tree.rows() == rows);
        std::int64_t wrong = 0;
        for (std::int32_t r = 0; r < rows; ++r)
            wrong += tree.seen(r) != (r < rows - 4 ? path_of(parents, r) : std::vector<std::int32_t>{r});
        CHECK(wrong == 0);
    }
    const auto refusal = [](auto&& call) -> std::string {
        try {
            call();
        } catch (const Error& error) {
            return error.what();
        }
        return "";
    };
    const std::vector<std::int64_t> shifted = {5, -1}, leaf = {0, 1};
    const std::vector<std::uint8_t> mask = {1, 1, 1, 1};
    CHECK(refusal([&] { StaticTree::from_fst(shifted, mask, leaf, 2, 2, 2); }).find("without the prefix") != std::string::npos);
    CHECK(refusal([&] { StaticTree::from_fst(leaf, mask, leaf, 2, 2, 4); }).find("ancestor_idx has 2 elements") !=
          std::string::npos);
    CHECK(refusal([] { StaticTree::from_parents(std::array{1, 0}); }).find("its own ancestor") != std::string::npos);
}

TEST_CASE("plan of static trees: every row of every sequence sees its prefix, its ancestors and itself, once") {
    const Limits limits = support::offline_limits("sm_90a");
    std::int64_t gathered = 0, runs = 0;
    for (std::uint64_t seed = 0; seed < 300; ++seed) {
        CAPTURE(seed);
        Dice dice(seed);
        std::vector<std::vector<std::int32_t>> parents;
        std::vector<StaticTree> trees;
        for (std::int32_t t = dice.between(1, 3); t > 0; --t) {
            parents.push_back(dice.below(4) == 0 ? support::fst_parents(dice.between(1, 6))
                                                 : support::random_parents(dice, dice.between(1, seed % 10 == 0 ? 900 : 150)));
            trees.push_back(StaticTree::from_parents(parents.back()));
        }
        std::vector<StaticTreeSequence> sequences;
        std::int64_t position = 7, row = 3;
        for (std::int32_t s = dice.between(1, 4); s > 0; --s) {
            StaticTreeSequence& one = sequences.emplace_back();
            one.tree = dice.below(std::ssize(trees));
            one.prefix_begin = position;
            one.prefix_tokens = dice.one_of({0, 1, 15, 16, 100, 700});
            one.tree_begin = position + one.prefix_tokens + dice.below(3);
            one.query_begin = row;
            position = one.tree_begin + trees[static_cast<std::size_t>(one.tree)].rows() + 11;
            row += trees[static_cast<std::size_t>(one.tree)].rows() + dice.below(2);
        }
        const std::int32_t group = dice.one_of({1, 1, 2, 5, 16});
        const auto plan = make_static_plan({.q_heads = group * 2, .kv_heads = 2, .head_dim = 64}, trees, sequences, {}, limits);
        std::map<std::int64_t, std::vector<std::int64_t>> seen;
        REQUIRE(read(*plan, seen) == "");
        REQUIRE(support::word_fault_of(*plan) == "");
        std::int64_t wrong = 0;
        std::size_t rows = 0;
        for (const StaticTreeSequence& one : sequences) {
            const auto& tree = parents[static_cast<std::size_t>(one.tree)];
            rows += tree.size();
            for (std::int32_t i = 0; i < std::ssize(tree); ++i) {
                std::vector<std::int64_t> expected;
                for (std::int64_t t = 0; t < one.prefix_tokens; ++t) expected.push_back(one.prefix_begin + t);
                for (const std::int32_t node : path_of(tree, i)) expected.push_back(one.tree_begin + node);
                wrong += seen[one.query_begin + i] != expected;
            }
        }
        REQUIRE(wrong == 0);
        REQUIRE(seen.size() == rows);
        for (const abi::Chunk& chunk : plan->list.chunks) (chunk.tokens & abi::kGathered ? gathered : runs) += 1;
    }
    CHECK((gathered > 1000 && runs > 1000));
}

TEST_CASE("static tree: ancestors are cut into the chunks that copying and products make cheapest") {
    const auto units_of = [](std::int32_t begin, std::int32_t end) { return (end + 15) / 16 - begin / 16; };
    for (std::uint64_t seed = 0; seed < 60; ++seed) {
        CAPTURE(seed);
        Dice dice(seed);
        const auto parents = seed % 3 == 0 ? support::fst_parents(6) : support::random_parents(dice, 160);
        const StaticTree tree = StaticTree::from_parents(parents);
        const std::int32_t rows = std::min(64, tree.rows());
        const std::int32_t begin = dice.below(tree.rows() - rows + 1);
        StaticTree::Block block;
        tree.block(begin, begin + rows, block);
        const NodeChunks made = node_chunks(block, rows, 1, 16);
        // Rows that see each node, by definition.
        const std::size_t count = made.nodes.size();
        std::vector<std::pair<std::int32_t, std::int32_t>> seen(count, {rows, 0});
        for (std::int32_t row = 0; row < rows; ++row) {
            for (const std::int32_t node : path_of(parents, begin + row)) {
                if (node == begin + row) continue;
                auto& [first, end] =
                    seen.at(static_cast<std::size_t>(std::ranges::lower_bound(made.nodes, node) - made.nodes.begin()));
                first = std::min(first, row), end = row + 1;
            }
        }
        const auto cost = [&](std::size_t from, std::size_t end) {
            std::int32_t first = rows, last = 0;
            for (std::size_t i = from; i < end; ++i) first = std::min(first, seen[i].first), last = std::max(last, seen[i].second);
            return 0.5 + units_of(first, last);
        };
        double found = 0;
        for (const NodeChunk& chunk : made.chunks) {
            const auto from = static_cast<std::size_t>(chunk.begin), end = from + static_cast<std::size_t>(chunk.count);
            REQUIRE((chunk.count >= 1 && chunk.count <= 16));
            CHECK(cost(from, end) == 0.5 + units_of(chunk.row_begin, chunk.row_end));
            found += cost(from, end);
        }
        // From the other end, so that a fault would have to be made twice.
        std::vector<double> least(count + 1, 0);
        for (std::size_t i = count; i-- > 0;) {
            least[i] = 1e9;
            for (std::size_t end = i + 1; end <= std::min(count, i + 16); ++end)
                least[i] = std::min(least[i], cost(i, end) + least[end]);
        }
        CHECK(found == least[0]);
    }
}

TEST_CASE("plan of static trees: a block follows soon on the one that holds its rows' parents") {
    const std::vector<std::int32_t> parents = support::fst_parents(11);  // 16k nodes; a level is up to 8k
    const std::vector<StaticTree> trees = {StaticTree::from_parents(parents)};
    const auto plan = make_static_plan({.q_heads = 8, .kv_heads = 8, .head_dim = 64}, trees, std::array{StaticTreeSequence{}}, {},
                                       support::offline_limits("sm_90a"));
    const WorkList& list = plan->list;
    std::vector<std::int64_t> place(parents.size());  // of a row's item in the list
    for (std::size_t i = 0; i < list.items.size(); ++i) {
        for (unsigned r = 0; r < list.items[i].requests; ++r)
            place[static_cast<std::size_t>(list.requests[list.items[i].request_begin + r].request)] = static_cast<std::int64_t>(i);
    }
    std::int64_t near = 0;
    for (std::size_t row = 4; row < parents.size(); ++row)
        near += std::abs(place[row] - place[static_cast<std::size_t>(parents[row])]) <= 16;
    CHECK(static_cast<double>(near) > 0.85 * static_cast<double>(parents.size()));
}

TEST_CASE("plan of static trees: what is wrong is named, and there is nothing to update from") {
    const Limits limits = support::offline_limits("sm_90a");
    const std::vector<StaticTree> trees = {StaticTree::from_parents(std::array{-1, 0})};
    const DecodeProblem problem = {.q_heads = 2, .kv_heads = 2, .head_dim = 64};
    const auto refusal = [&](const StaticTreeSequence& sequence) -> std::string {
        try {
            make_static_plan(problem, trees, std::array{sequence}, {}, limits);
        } catch (const Error& error) {
            return error.what();
        }
        return "";
    };
    CHECK(refusal({.tree = 1}).find("sequence 0 names tree 1; there are 1") != std::string::npos);
    CHECK(refusal({.prefix_tokens = -1}).find("KV positions") != std::string::npos);
    CHECK(refusal({.query_begin = -2}).find("row -2") != std::string::npos);
    const auto plan = make_static_plan(problem, trees, std::array{StaticTreeSequence{}}, {}, limits);
    CHECK_THROWS_AS(plan->update(Forest()), Error);
}
