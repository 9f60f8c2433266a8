// SPDX-License-Identifier: Apache-2.0
// Work lists are read back into what every request sees and compared with its root path.
#include <doctest/doctest.h>

#include <algorithm>
#include <cstring>
#include <map>

#include "plan/decode_plan.h"
#include "plan/tiles.h"
#include "sapwood/error.h"
#include "support/list_reader.h"
#include "support/offline_limits.h"
#include "support/random_forest.h"

using namespace sapwood;
using support::Dice;
using support::fault_of;

namespace {

DecodePlan make_plan(const Forest& forest, const DecodeProblem& problem, const DecodeConfig& config, const DecodeLimits& room,
                     int sms) {
    Limits limits = support::offline_limits("sm_90a");
    limits.sms = sms;
    return DecodePlan(make_decode_plan(problem, forest, config, room, limits));
}

DecodeProblem problem_of(std::int32_t group, std::int32_t kv_heads = 1) {
    return {.q_heads = group * kv_heads, .kv_heads = kv_heads, .head_dim = 64};
}

DecodeConfig random_config(Dice& dice) {
    return {.warps = dice.one_of({4, 8}),
            .block_kv = dice.one_of({32, 64, 128}),
            .blocks = 1,
            .split = dice.one_of({0, 1, 2, 3, 7, 64})};
}

/// The parts of a list that growth within chunks must leave alone, and the chunks without their lengths.
struct Frozen {
    std::vector<abi::Item> items;
    std::vector<abi::ItemRequest> requests;
    std::vector<abi::Chunk> chunks;
    std::vector<abi::Merge> merges;
    std::int64_t slots;
    explicit Frozen(const WorkList& list)
        : items(list.items), requests(list.requests), chunks(list.chunks), merges(list.merges), slots(list.slots) {}
};

template <class T>
bool same(const std::vector<T>& a, const std::vector<T>& b) {
    return a.size() == b.size() && (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0);
}

bool same_but_chunks(const Frozen& a, const Frozen& b) {
    return same(a.items, b.items) && same(a.requests, b.requests) && same(a.merges, b.merges) && a.slots == b.slots;
}

}  // namespace

TEST_CASE("plan: every request of a random forest sees exactly its path") {
    std::int64_t merged = 0, final = 0, unseen = 0;
    for (std::uint64_t seed = 0; seed < 4000; ++seed) {
        Dice dice(seed);
        const bool large = seed % 16 == 0;
        const Forest forest = support::random_forest(dice, {.nodes = dice.between(1, large ? 120 : 24),
                                                            .requests = dice.between(0, large ? 300 : 40),
                                                            .longest = dice.one_of({20, 100, 700})});
        const std::int32_t group = dice.below(2) == 0 ? dice.between(1, 64) : dice.one_of({1, 2, 4, 8});
        const DecodeConfig config = random_config(dice);
        const DecodePlan plan = make_plan(forest, problem_of(group, dice.between(1, 3)), config, {}, dice.one_of({1, 6, 132}));
        CAPTURE(seed);
        CAPTURE(plan.to_string());
        REQUIRE(plan.impl().config.warps == config.warps);
        REQUIRE(fault_of(plan.impl(), forest) == "");
        REQUIRE(plan.info().requests == forest.live_requests());
        merged += static_cast<std::int64_t>(plan.impl().list.merges.size());
        for (const abi::ItemRequest& request : plan.impl().list.requests) {
            final += request.slot == abi::kFinal;
            unseen += request.slot == abi::kUnseen;
        }
    }
    // The forests reach every kind of result.
    CHECK(merged > 1000);
    CHECK(final > 1000);
    CHECK(unseen > 100);
}

TEST_CASE("plan: a chain of 100000 nodes, and a forest in which nobody sees anything") {
    std::vector<Node> chain(100'000);
    for (std::int32_t i = 0; i < 100'000; ++i) chain[i] = {.parent = i - 1, .tokens = i % 3, .kv_begin = 4 * i};
    const Forest deep = Forest::from_nodes(chain, std::vector<std::int32_t>{99'999, 50'000, 0});
    CHECK(fault_of(make_plan(deep, problem_of(4), {}, {}, 132).impl(), deep) == "");

    const Forest empty = Forest::from_nodes(std::vector<Node>{{.parent = -1}, {.parent = 0}}, std::vector<std::int32_t>(200, -1));
    const DecodePlan plan = make_plan(empty, problem_of(4), {}, {}, 132);
    CHECK(fault_of(plan.impl(), empty) == "");
    CHECK(plan.impl().list.chunks.empty());
    CHECK(make_plan(Forest(), problem_of(4), {}, {}, 132).impl().list.items.empty());
}

TEST_CASE("plan: update follows a forest through random changes") {
    int patched = 0, planned = 0;
    for (std::uint64_t seed = 0; seed < 250; ++seed) {
        Dice dice(seed * 7919 + 1);
        constexpr std::int64_t kGap = 5000;
        Forest forest = support::random_forest(
            dice, {.nodes = dice.between(2, 20), .requests = dice.between(1, 30), .longest = dice.one_of({30, 300})}, kGap);
        std::int64_t fresh = 1'000'000;
        DecodePlan plan =
            make_plan(forest, problem_of(dice.between(1, 16)), random_config(dice),
                      {.max_requests = 100'000, .max_tiles = 100'000, .max_items = 100'000}, dice.one_of({1, 6, 132}));
        const auto any_node = [&] { return dice.below(forest.node_capacity()); };
        const auto any_request = [&] { return dice.below(std::max(1, forest.request_capacity())); };
        for (int step = 0; step < 16; ++step) {
            const std::int32_t node = any_node(), request = any_request(), kind = dice.below(10);
            if (kind < 4) {
                forest.append_token_to_each_request();
            } else if (kind == 4 && forest.node_alive(node)) {
                forest.append_tokens(node, dice.between(0, 40));
            } else if (kind == 5) {
                const std::int32_t parent = forest.node_alive(node) ? node : -1;
                forest.add_request(forest.add_node({.parent = parent, .tokens = dice.below(50), .kv_begin = fresh}));
                fresh += kGap;
            } else if (kind == 6 && forest.node_alive(node)) {
                forest.add_request(node);
            } else if (kind == 7 && forest.request_alive(request)) {
                forest.remove_request(request);
            } else if (kind == 8 && forest.request_alive(request)) {
                forest.move_request(request, forest.node_alive(node) ? node : Forest::kNoNode);
            } else if (kind == 9 && forest.node_alive(node)) {
                try {
                    forest.remove_node(node);
                } catch (const Error&) {  // it has children or requests
                }
            }
            if (dice.below(8) == 0) forest = Forest(forest);  // a copy: planned anew, then followed
            if (dice.below(4) == 0) continue;                 // several changes at once
            const std::uint64_t revision = plan.impl().revision;
            plan.update(forest);
            (plan.impl().revision == revision ? patched : planned) += 1;
            CAPTURE(seed);
            CAPTURE(step);
            REQUIRE(fault_of(plan.impl(), forest) == "");
        }
    }
    CHECK(patched > 500);
    CHECK(planned > 500);
}

TEST_CASE("plan: one token for each request changes chunk lengths alone, and says which") {
    // Shared root and inner node end in whole chunks; leaves have room for 15 more tokens, and one of them is shared by two
    // requests.
    std::vector<Node> nodes = {{.parent = -1, .tokens = 640, .kv_begin = 0}, {.parent = 0, .tokens = 32, .kv_begin = 1000}};
    std::vector<std::int32_t> requests;
    for (std::int32_t i = 2; i < 40; ++i) {
        nodes.push_back({.parent = i % 2, .tokens = 65, .kv_begin = 1000 * i});
        requests.push_back(i);
    }
    requests.push_back(39);
    Forest forest = Forest::from_nodes(nodes, requests);
    DecodePlan plan = make_plan(forest, problem_of(4), {.split = 2}, {}, 6);
    WorkList& list = plan.impl().list;
    const std::uint64_t revision = plan.impl().revision;
    for (int token = 0; token < 15; ++token) {
        const Frozen before(list);
        list.changed_begin = list.changed_end = 0;  // as an upload leaves them
        forest.append_token_to_each_request();
        plan.update(forest);
        REQUIRE(plan.impl().revision == revision);
        REQUIRE(same_but_chunks(before, Frozen(list)));
        REQUIRE(fault_of(plan.impl(), forest) == "");
        std::size_t first = list.chunks.size(), end = 0;
        for (std::size_t c = 0; c < list.chunks.size(); ++c) {
            abi::Chunk shorter = list.chunks[c];
            if (std::memcmp(&shorter, &before.chunks[c], sizeof(shorter)) == 0) continue;
            --shorter.tokens;
            REQUIRE(std::memcmp(&shorter, &before.chunks[c], sizeof(shorter)) == 0);
            first = std::min(first, c);
            end = c + 1;
        }
        REQUIRE(list.changed_begin == first);
        REQUIRE(list.changed_end == end);
        REQUIRE(first < end);
    }
    forest.append_token_to_each_request();  // crosses into the next chunk
    plan.update(forest);
    CHECK(plan.impl().revision == revision + 1);
    CHECK(fault_of(plan.impl(), forest) == "");
}

TEST_CASE("plan: a plan follows the forest that it was updated from last, copies included") {
    Forest forest =
        Forest::from_nodes(std::vector<Node>{{.parent = -1, .tokens = 40}, {.parent = 0, .tokens = 5, .kv_begin = 100}});
    DecodePlan plan = make_plan(forest, problem_of(4), {}, {}, 6);
    // As many changes to each, but not the same: only their identity tells the two forests apart.
    Forest copy = forest;
    copy.append_tokens(1, 3);
    forest.append_tokens(1, 1);
    plan.update(copy);
    CHECK(fault_of(plan.impl(), copy) == "");
    plan.update(forest);
    CHECK(fault_of(plan.impl(), forest) == "");

    // Growth too large for the journal starts it anew: as many entries as the plan has seen, but others.
    const std::int32_t unread = forest.add_node({.parent = 0, .tokens = 1, .kv_begin = 1000});
    plan.update(forest);
    const std::size_t entries = plan.impl().journal;
    REQUIRE(entries > 0);
    forest.append_tokens(unread, std::int64_t{1} << 31);
    for (std::size_t i = 0; i < entries; ++i) forest.append_tokens(1, 1);
    plan.update(forest);
    CHECK(fault_of(plan.impl(), forest) == "");
}

TEST_CASE("plan: what exceeds the capacity leaves the plan as it was") {
    // 2 + 1 + 1 chunks: one whole tile.
    Forest forest = Forest::from_nodes(std::vector<Node>{
        {.parent = -1, .tokens = 32}, {.parent = 0, .tokens = 8, .kv_begin = 100}, {.parent = 0, .tokens = 16, .kv_begin = 200}});
    const DecodeConfig config = {.warps = 4, .block_kv = 64, .blocks = 1, .split = 1};
    DecodePlan plan = make_plan(forest, problem_of(4), config, {.max_tiles = 1}, 1);
    REQUIRE(plan.impl().capacity.chunks == 4);
    const Forest planned = forest;
    const auto refuses = [&](const Forest& changed, const char* what) {
        const Frozen before(plan.impl().list);
        const std::uint64_t revision = plan.impl().revision;
        const DecodePlanInfo info = plan.info();
        try {
            plan.update(changed);
            FAIL("the update fits");
        } catch (const Error& error) {
            CHECK(error.code() == ErrorCode::kCapacityExceeded);
            CHECK(error.what() == doctest::Contains(what));
        }
        CHECK(plan.impl().revision == revision);
        CHECK(same_but_chunks(before, Frozen(plan.impl().list)));
        CHECK(same(before.chunks, plan.impl().list.chunks));
        CHECK(plan.info().hbm_bytes == info.hbm_bytes);
        CHECK(fault_of(plan.impl(), planned) == "");
    };
    forest.append_token_to_each_request();  // node 1 has room in its chunk, node 2 has not
    refuses(forest, "needs 8 chunks; the plan holds 4");
    refuses(forest, "needs 8 chunks; the plan holds 4");  // still
    Forest crowd = planned;
    for (int i = 0; i < 600; ++i) crowd.add_request(1);
    refuses(crowd, "Plan again with larger DecodeLimits");

    // Back inside the capacity: the plan is as good as before.
    forest.move_request(1, 0);
    plan.update(forest);
    CHECK(fault_of(plan.impl(), forest) == "");
    plan.update(planned);
    CHECK(fault_of(plan.impl(), planned) == "");
}

namespace {

/// Requests with a prefix of their own each, and a draft of `nodes` in a chain behind it.
Forest verified(int requests, std::int64_t prefix, std::size_t nodes) {
    std::vector<std::int32_t> parents(nodes);
    for (std::size_t i = 0; i < nodes; ++i) parents[i] = static_cast<std::int32_t>(i) - 1;
    std::vector<Node> roots;
    for (int r = 0; r < requests; ++r) roots.push_back({.parent = -1, .tokens = prefix, .kv_begin = r * (prefix + 4096)});
    Forest forest = Forest::from_nodes(roots);
    for (int r = 0; r < requests; ++r) forest.add_draft(r, r * (prefix + 4096) + prefix, DraftMask::from_parents(parents));
    return forest;
}
std::string tiles_of(int requests, std::int64_t prefix, std::size_t nodes, std::int32_t group) {
    const DecodeProblem problem = {.q_heads = group * 8, .kv_heads = 8, .head_dim = 128, .dtype = DType::bf16, .page_size = 16};
    const DecodeConfig config = make_plan(verified(requests, prefix, nodes), problem, {}, {}, 132).info().config;
    return std::string(mainloop_name(config.mainloop)) + " " + std::to_string(config.block_kv);
}

}  // namespace

TEST_CASE("plan: warpgroups where rows are many, longer tiles where arithmetic is the limit and the work is long") {
    CHECK(tiles_of(64, 4096, 1, 4) == "mma 64");
    CHECK(tiles_of(16, 2048, 60, 4) == "wgmma 64");
    CHECK(tiles_of(8, 8192, 64, 4) == "wgmma 128");
    CHECK(tiles_of(1, 8192, 64, 4) == "wgmma 64");  // as much arithmetic for its loads, but short
    CHECK(tiles_of(8, 4096, 256, 8) == "wgmma 128");
}

TEST_CASE("plan: row blocks that load one draft's path are cut alike, so that they pass its keys together") {
    const DecodeProblem problem = {.q_heads = 32, .kv_heads = 8, .head_dim = 128, .page_size = 16};
    const DecodePlan plan = make_plan(verified(1, 32768, 69), problem, {}, {}, 132);
    std::map<int, std::vector<int>> tiles;
    for (const abi::Item& item : plan.impl().list.items) tiles[item.requests].push_back(static_cast<int>(item.tiles));
    // Two whole blocks of 32 rows and the few that are left: as many items of each, and those of equal length.
    REQUIRE(tiles.size() == 2);
    CHECK(tiles[32].size() == 2 * tiles.begin()->second.size());
    for (const auto& [requests, all] : tiles)
        CHECK(*std::max_element(all.begin(), all.end()) - *std::min_element(all.begin(), all.end()) <= 2);
}

TEST_CASE("plan: keys that one warpgroup's rows see fill tiles of their own, and what makes no whole tile comes last") {
    // Two work items of eight requests: 30 chunks that both load, one for all rows of an item, one for each request.
    std::vector<Node> nodes = {{.parent = -1, .tokens = 30 * 16, .kv_begin = 0}};
    std::int64_t end = nodes[0].tokens;
    const auto add = [&](std::int32_t parent) {
        nodes.push_back({.parent = parent, .tokens = 16, .kv_begin = end});
        end += 16;
        return static_cast<std::int32_t>(nodes.size()) - 1;
    };
    for (int item = 0; item < 2; ++item) {
        const std::int32_t shared = add(0);
        for (int request = 0; request < 8; ++request) add(shared);
    }
    const DecodeConfig config = {.mainloop = Mainloop::wgmma, .warps = 8, .block_kv = 64};
    const DecodePlan plan = make_plan(Forest::from_nodes(nodes), {.q_heads = 16, .kv_heads = 1, .head_dim = 128}, config, {}, 2);
    const WorkList& list = plan.impl().list;
    REQUIRE(list.items.size() == 2);
    for (const abi::Item& item : list.items) {
        REQUIRE(item.tiles == 10);
        // 31 chunks for all rows and four for each half of them: nine tiles for each warpgroup, not ten for one.
        for (const unsigned unit : {0u, 1u}) {
            int attended = 0;
            for (std::size_t tile = 0; tile < 10; ++tile)
                attended += list.chunks[item.chunk_begin + tile * 4].tile_word >> unit & 1;
            CHECK(attended == 9);
        }
    }
}
