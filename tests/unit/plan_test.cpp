// SPDX-License-Identifier: Apache-2.0
// Work lists are read back into what every request sees and compared with its root path.
#include <doctest/doctest.h>

#include <cstring>

#include "plan/decode_plan.h"
#include "plan/tiles.h"
#include "sapwood/error.h"
#include "support/offline_limits.h"
#include "support/random_forest.h"

using namespace sapwood;
using support::Dice;

namespace {

/// What a list does for each request.
struct Served {
    // Where runs of KV positions begin (+1) and end (-1): two multisets of positions are equal if their edges are, summed by
    // position.
    std::vector<std::vector<std::pair<std::int64_t, int>>> edges;
    std::vector<int> finals, merges;
};

/// Reads one item into `served`; the text names the first thing wrong with it.
std::string read_item(const DecodePlan::Impl& plan, const Forest& forest, const abi::Item& item, Served& served,
                      std::vector<std::int32_t>& slot_owner, std::vector<int>& chunk_uses) {
    const WorkList& list = plan.list;
    const unsigned group = static_cast<unsigned>(group_of(plan.problem));
    const unsigned rows = item.requests * group, in_tile = static_cast<unsigned>(plan.config.block_kv) / abi::kChunkTokens;
    if (item.requests == 0 || rows > static_cast<unsigned>(plan.config.warps) * 16) return std::to_string(rows) + " rows";
    if (item.request_begin + item.requests > list.requests.size()) return "requests past the end";
    if (item.chunk_begin + std::size_t{item.tiles} * in_tile > list.chunks.size()) return "chunks past the end";
    std::vector<bool> sees(item.requests);
    unsigned padding = 0;
    for (std::size_t c = item.chunk_begin; c < item.chunk_begin + std::size_t{item.tiles} * in_tile; ++c) {
        const abi::Chunk& chunk = list.chunks[c];
        ++chunk_uses[c];
        if (chunk.tokens == 0) {
            if (chunk.row_begin != chunk.row_end) return "padding with rows";
            ++padding;
            continue;
        }
        if (padding > 0) return "padding inside the item";
        if (chunk.tokens > abi::kChunkTokens || chunk.row_begin >= chunk.row_end || chunk.row_end > rows ||
            chunk.row_begin % group != 0 || chunk.row_end % group != 0) {
            return "chunk of " + std::to_string(chunk.tokens) + " tokens for rows " + std::to_string(chunk.row_begin) + ".." +
                   std::to_string(chunk.row_end);
        }
        for (unsigned r = chunk.row_begin / group; r < chunk.row_end / group; ++r) {
            sees[r] = true;
            auto& edges = served.edges.at(static_cast<std::size_t>(list.requests[item.request_begin + r].request));
            edges.emplace_back(chunk.position, 1);
            edges.emplace_back(std::int64_t{chunk.position} + chunk.tokens, -1);
        }
    }
    if (padding >= in_tile) return "a tile of padding";
    for (unsigned r = 0; r < item.requests; ++r) {
        const auto [request, slot] = list.requests[item.request_begin + r];
        const std::string name = "request " + std::to_string(request);
        if (!forest.request_alive(request)) return name + " is not alive";
        if (slot == abi::kUnseen ? sees[r] : !sees[r] && forest.path_tokens(request) > 0) return name + " has a wrong kUnseen";
        if (slot == abi::kFinal) ++served.finals[static_cast<std::size_t>(request)];
        if (slot < 0) continue;
        if (slot >= list.slots || slot_owner[slot] != -1) return name + " writes slot " + std::to_string(slot) + " once more";
        slot_owner[slot] = request;
    }
    return {};
}

/// Empty if the list gives every request of the forest exactly its path, once, and nothing else; else what is wrong.
std::string fault_of(const DecodePlan::Impl& plan, const Forest& forest) {
    const WorkList& list = plan.list;
    const auto requests = static_cast<std::size_t>(forest.request_capacity());
    Served served{
        .edges = decltype(Served::edges)(requests), .finals = std::vector(requests, 0), .merges = std::vector(requests, 0)};
    std::vector<std::int32_t> slot_owner(static_cast<std::size_t>(list.slots), -1);
    std::vector<int> chunk_uses(list.chunks.size());
    for (std::size_t i = 0; i < list.items.size(); ++i) {
        const std::string fault = read_item(plan, forest, list.items[i], served, slot_owner, chunk_uses);
        if (!fault.empty()) return "item " + std::to_string(i) + ": " + fault;
        if (i > 0 && list.items[i].tiles > list.items[i - 1].tiles)
            return "item " + std::to_string(i) + " is longer than the one before";
    }
    for (const int uses : chunk_uses) {
        if (uses != 1) return "a chunk of " + std::to_string(uses) + " items";
    }
    for (const abi::Merge& merge : list.merges) {
        const std::string name = "merge of request " + std::to_string(merge.request);
        if (merge.slots < 2 || merge.slot_begin < 0 || merge.slot_begin + merge.slots > list.slots) return name + " has bad slots";
        if (!forest.request_alive(merge.request)) return name + ", which is not alive";
        for (std::int32_t s = merge.slot_begin; s < merge.slot_begin + merge.slots; ++s) {
            if (slot_owner[s] != merge.request) return name + " reads slot " + std::to_string(s) + ", not its own or read before";
            slot_owner[s] = -2;
        }
        ++served.merges[static_cast<std::size_t>(merge.request)];
    }
    for (const std::int32_t owner : slot_owner) {
        if (owner != -2) return "a slot of request " + std::to_string(owner) + " that nobody reads or writes";
    }
    for (std::int32_t r = 0; r < forest.request_capacity(); ++r) {
        const std::string name = "request " + std::to_string(r);
        const int results = served.finals[r] + served.merges[r];
        if (results != (forest.request_alive(r) ? 1 : 0)) return name + " gets " + std::to_string(results) + " results";
        if (!forest.request_alive(r)) continue;
        auto& edges = served.edges[r];
        for (std::int32_t id = forest.request_node(r); id >= 0; id = forest.node(id).parent) {
            edges.emplace_back(forest.node(id).kv_begin, -1);
            edges.emplace_back(forest.node(id).kv_begin + forest.node(id).tokens, 1);
        }
        std::sort(edges.begin(), edges.end());
        for (std::size_t i = 0; i < edges.size();) {
            const std::int64_t position = edges[i].first;
            int sum = 0;
            for (; i < edges.size() && edges[i].first == position; ++i) sum += edges[i].second;
            if (sum != 0) return name + " sees other keys than its path from position " + std::to_string(position) + " on";
        }
    }
    const WorkCounts now = list.counts(), room = plan.capacity;
    if (now.items > room.items || now.requests > room.requests || now.chunks > room.chunks || now.merges > room.merges ||
        now.slots > room.slots) {
        return "more than the plan's capacity";
    }
    return {};
}

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
    Forest copy = forest;
    copy.append_tokens(1, 3);
    forest.append_tokens(1, 1);
    plan.update(copy);
    CHECK(fault_of(plan.impl(), copy) == "");
    copy.append_tokens(1, 2);
    plan.update(copy);
    CHECK(fault_of(plan.impl(), copy) == "");
    plan.update(forest);
    CHECK(fault_of(plan.impl(), forest) == "");
    // Growth too large for the journal starts it anew: as many entries as the plan has seen, but others.
    const std::int32_t unread = forest.add_node({.parent = 0, .tokens = 1, .kv_begin = 1000});
    plan.update(forest);
    forest.append_tokens(1, 1);
    plan.update(forest);
    forest.append_tokens(unread, std::int64_t{1} << 31);
    forest.append_tokens(1, 2);
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
