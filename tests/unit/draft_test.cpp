// SPDX-License-Identifier: Apache-2.0
// Draft masks against their definition, drafts as part of a forest, and work lists with drafts read back.
#include <doctest/doctest.h>

#include <array>
#include <functional>

#include "plan/decode_plan.h"
#include "sapwood/error.h"
#include "support/list_reader.h"
#include "support/offline_limits.h"
#include "support/random_drafts.h"

using namespace sapwood;
using support::Dice;

namespace {

std::string refusal(const std::function<void()>& call) {
    try {
        call();
    } catch (const Error& error) {
        return error.what();
    }
    return "";
}

bool says(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

}  // namespace

TEST_CASE("draft mask: parents give every token its ancestors and itself, in any order of the tokens") {
    for (std::uint64_t seed = 0; seed < 300; ++seed) {
        CAPTURE(seed);
        Dice dice(seed);
        const std::vector<std::int32_t> parents = support::random_parents(dice, dice.between(1, seed % 20 == 0 ? 1024 : 80));
        const DraftMask mask = DraftMask::from_parents(parents);
        const auto count = static_cast<std::int32_t>(parents.size());
        REQUIRE((mask.rows() == count && mask.columns() == count && mask.known()));
        std::int64_t wrong = 0;
        for (std::int32_t i = 0; i < count; ++i) {
            std::vector<bool> seen(parents.size());
            std::int32_t depth = 0;
            for (std::int32_t a = i; a >= 0; a = parents[static_cast<std::size_t>(a)], ++depth)
                seen[static_cast<std::size_t>(a)] = true;
            for (std::int32_t t = 0; t < count; ++t) wrong += mask.sees(i, t) != seen[static_cast<std::size_t>(t)];
            wrong += mask.seen(i) != depth;
        }
        CHECK(wrong == 0);
    }
    CHECK(DraftMask::from_parents(std::array{-1}).all_seen());
    CHECK(!DraftMask::from_parents(std::array{-1, 0}).all_seen());
    CHECK(DraftMask::from_parents({}).all_seen());
}

TEST_CASE("draft mask: packed bits, dense masks of several types and LongSpec's causal rule agree") {
    Dice dice(7);
    for (const auto& [rows, columns] : {std::pair{5, 9}, {40, 33}, {3, 64}, {69, 80}, {12, 4}}) {
        std::vector<std::int64_t> wide(static_cast<std::size_t>(rows * (columns + 3)), 0);
        std::vector<std::uint8_t> narrow(static_cast<std::size_t>(rows * columns));
        const int width = (columns + 31) / 32;
        std::vector<std::uint32_t> words(static_cast<std::size_t>(rows * width), 0);
        for (int r = 0; r < rows; ++r) {
            for (int t = 0; t < columns; ++t) {
                const bool seen = dice.below(3) > 0;
                wide[static_cast<std::size_t>(r * (columns + 3) + t)] = seen ? -(std::int64_t{1} << 40) : 0;  // not in the low bits
                narrow[static_cast<std::size_t>(r * columns + t)] = seen ? 2 : 0;
                words[static_cast<std::size_t>(r * width + t / 32)] |= (seen ? 1u : 0u) << (t % 32);
            }
            if (columns % 32 != 0) words[static_cast<std::size_t>((r + 1) * width - 1)] |= 1u << 31;  // behind the last column
        }
        const DraftMask a = DraftMask::from_dense(wide.data(), rows, columns, columns + 3);
        const DraftMask b = DraftMask::from_dense(narrow.data(), rows, columns), c = DraftMask::from_bits(words, rows, columns);
        const DraftMask causal = DraftMask::from_dense(narrow.data(), rows, columns, 0, true);
        std::int64_t wrong = 0;
        for (int r = 0; r < rows; ++r) {
            for (int t = 0; t < columns; ++t) {
                const bool seen = narrow[static_cast<std::size_t>(r * columns + t)] != 0;
                wrong += a.sees(r, t) != seen || b.sees(r, t) != seen || c.sees(r, t) != seen;
                wrong += causal.sees(r, t) != (seen && t <= columns - rows + r);
            }
            wrong += c.seen(r) != b.seen(r);
        }
        CHECK(wrong == 0);
    }
}

TEST_CASE("draft mask: what is wrong is named") {
    CHECK(says(refusal([] { DraftMask::from_parents(std::array{-1, 2}); }), "draft token 1 names parent 2; there are 2 tokens"));
    CHECK(says(refusal([] { DraftMask::from_parents(std::array{-1, 2, 1}); }), "its own ancestor"));
    CHECK(says(refusal([] { DraftMask::from_bits(std::array{1u, 2u}, 3, 4); }), "3 rows of 4 tokens has 3 words"));
    CHECK(says(refusal([] { DraftMask::on_device(-1, 4); }), "-1 rows of 4 tokens"));
}

TEST_CASE("forest: drafts are added, replaced and removed as one, and own their requests") {
    Forest forest = Forest::from_nodes(std::vector<Node>{{.tokens = 10}, {.tokens = 5, .kv_begin = 20}});
    const DraftMask three = DraftMask::from_parents(std::array{-1, 0, 0}), chain = DraftMask::from_parents(std::array{-1, 0, 1});
    const DraftIds a = forest.add_draft(0, 100, three), b = forest.add_draft(1, 200, DraftMask::from_parents(std::array{-1}));
    CHECK((a.first_request == 2 && b.first_request == 5 && forest.live_requests() == 6));
    CHECK(forest.path_tokens(a.first_request + 2) == 12);
    CHECK(forest.path_tokens(b.first_request) == 6);
    forest.replace_draft(a.node, 101, chain);
    CHECK(forest.path_tokens(a.first_request + 2) == 13);
    CHECK(forest.node(a.node).kv_begin == 101);
    CHECK(forest.total_tokens() == 19);

    CHECK(says(refusal([&] { forest.add_request(a.node); }), "which is a draft"));
    CHECK(says(refusal([&] { forest.add_node({.parent = a.node}); }), "which is a draft"));
    CHECK(says(refusal([&] { forest.append_tokens(a.node); }), "which is a draft"));
    CHECK(says(refusal([&] { forest.append_token_to_each_request(); }), "which is a draft"));
    CHECK(says(refusal([&] { forest.remove_request(a.first_request); }), "which is a draft"));
    CHECK(says(refusal([&] { forest.move_request(a.first_request, 0); }), "which is a draft"));
    CHECK(says(refusal([&] { forest.remove_node(a.node); }), "which is a draft"));
    CHECK(says(refusal([&] { forest.remove_draft(0); }), "which is no draft"));
    CHECK(says(refusal([&] { forest.replace_draft(a.node, 0, DraftMask::from_parents(std::array{-1})); }), "1 rows, the draft 3"));
    CHECK(forest.live_requests() == 6);  // bad input has changed nothing

    forest.remove_draft(a.node);
    CHECK((forest.live_requests() == 3 && forest.total_tokens() == 16));
    CHECK(forest.add_draft(0, 100, chain).first_request == 2);  // the ids that came free, which are neighbours
    forest.remove_draft(b.node);
    const DraftMask two = DraftMask::from_parents(std::array{-1, 0});
    CHECK(forest.add_draft(0, 300, two).first_request == 6);  // one free id does not hold two
}

TEST_CASE("plan: every request of a random forest with drafts sees its path, and of its draft what the mask says") {
    std::int64_t masked = 0, whole = 0, padding = 0;
    for (std::uint64_t seed = 0; seed < 1500; ++seed) {
        Dice dice(seed);
        Forest forest = support::random_forest(
            dice, {.nodes = dice.between(1, 12), .requests = dice.between(0, 10), .longest = dice.one_of({20, 100, 700})});
        for (std::int32_t n = dice.between(1, 5); n > 0; --n) {
            const std::int32_t parent = dice.below(12 + 1) - 1;
            const bool fits = parent < forest.node_capacity() && forest.draft_mask(parent) == nullptr;
            forest.add_draft(fits ? parent : -1, 100'000 * n, support::random_draft(dice, seed % 16 == 0 ? 300 : 40));
        }
        Limits limits = support::offline_limits("sm_90a");
        limits.sms = dice.one_of({1, 6, 132});
        const std::int32_t group = dice.one_of({1, 2, 3, 4, 8, 40});
        const DecodeConfig config = {
            .warps = dice.one_of({4, 8}), .block_kv = dice.one_of({32, 64, 128}), .split = dice.one_of({0, 1, 7})};
        const DecodePlan plan(make_decode_plan({.q_heads = group, .kv_heads = 1, .head_dim = 64}, forest, config, {}, limits));
        CAPTURE(seed);
        CAPTURE(plan.to_string());
        REQUIRE(support::fault_of(plan.impl(), forest) == "");
        std::int64_t loaded = 0;
        for (const abi::Chunk& chunk : plan.impl().list.chunks) {
            masked += (chunk.tokens & abi::kMasked) != 0;
            whole += chunk.tokens == abi::kChunkTokens;
            padding += chunk.tokens == 0;
            loaded += chunk.tokens & abi::kTokensMask;
        }
        REQUIRE(plan.impl().list.loaded_tokens == loaded);
    }
    CHECK((masked > 1000 && whole > 1000 && padding > 1000));  // padding: at the ends of items alone
}

TEST_CASE("plan: drafts of one token are plain decode; a step's drafts are an update within the capacity") {
    const Limits limits = support::offline_limits("sm_90a");
    Forest forest = Forest::from_nodes(std::vector<Node>{{.tokens = 1000}}, std::vector<std::int32_t>{});
    const DraftIds ids = forest.add_draft(0, 5000, DraftMask::from_parents(std::array{-1}));
    const DecodeProblem problem = {.q_heads = 4, .kv_heads = 1, .head_dim = 128};
    DecodePlan plain(make_decode_plan(problem, forest, {}, {}, limits));
    CHECK(!plain.problem().mask);

    forest.remove_draft(ids.node);
    Dice dice(3);
    const DraftIds draft = forest.add_draft(0, 5000, DraftMask::from_parents(support::random_parents(dice, 60)));
    CHECK(says(refusal([&] { plain.update(forest); }), "DecodeProblem::mask"));
    DecodePlan plan(make_decode_plan(problem, forest, {}, {}, limits));
    CHECK(plan.problem().mask);
    const WorkCounts room = plan.impl().capacity;
    for (int step = 0; step < 20; ++step) {
        forest.append_tokens(0, dice.between(1, 6));
        forest.replace_draft(draft.node, 5000 + 64 * step, support::random_mask(dice, 60, dice.between(1, 64)));
        plan.update(forest);
        CAPTURE(step);
        REQUIRE(support::fault_of(plan.impl(), forest) == "");
        CHECK(plan.impl().capacity.mask_words == room.mask_words);
    }
    forest.replace_draft(draft.node, 5000, support::random_mask(dice, 60, 65));
    CHECK(says(refusal([&] { plan.update(forest); }), "words a mask row"));

    forest.replace_draft(draft.node, 5000, DraftMask::on_device(60, 60));
    forest.add_draft(0, 9000, support::random_mask(dice, 2, 2));
    CHECK(says(refusal([&] { plan.update(forest); }), "some on the device"));
}
