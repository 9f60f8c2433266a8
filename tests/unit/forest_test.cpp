// SPDX-License-Identifier: Apache-2.0
#include "sapwood/forest.h"

#include <doctest/doctest.h>

#include <functional>
#include <numeric>

#include "sapwood/error.h"
#include "tree/forest_impl.h"

using namespace sapwood;

namespace {

constexpr std::int64_t kLastPosition = 0xffffffff;

/// All that a caller can see of a forest, and whether a plan made from it would take it for changed.
std::string seen(const Forest& forest) {
    std::string text = std::to_string(forest.live_nodes()) + "/" + std::to_string(forest.node_capacity()) + " nodes " +
                       std::to_string(forest.live_requests()) + "/" + std::to_string(forest.request_capacity()) + " requests " +
                       std::to_string(forest.total_tokens());
    for (std::int32_t id = 0; id < forest.node_capacity(); ++id) {
        text += " n" + std::to_string(id);
        if (!forest.node_alive(id)) continue;
        const Node& node = forest.node(id);
        text += ":" + std::to_string(node.parent) + "," + std::to_string(node.tokens) + "," + std::to_string(node.kv_begin);
    }
    for (std::int32_t id = 0; id < forest.request_capacity(); ++id) {
        text += " r" + std::to_string(id);
        if (forest.request_alive(id)) {
            text += "@" + std::to_string(forest.request_node(id)) + "=" + std::to_string(forest.path_tokens(id));
        }
    }
    return text + " changes " + std::to_string(forest.impl().structure) + "+" + std::to_string(forest.impl().grown.size());
}

/// The call throws `code`, its text holds each of `words`, and the forest is what it was.
void refuses(Forest& forest, ErrorCode code, const std::vector<std::string>& words, const std::function<void(Forest&)>& call) {
    const std::string before = seen(forest);
    try {
        call(forest);
        FAIL("accepted; expected an error with: " << words.front());
    } catch (const Error& error) {
        CHECK(error.code() == code);
        for (const std::string& word : words) CHECK(error.what() == doctest::Contains(word.c_str()));
    }
    CHECK(seen(forest) == before);
}

void refuses_nodes(const std::vector<Node>& nodes, const std::vector<std::int32_t>& requests,
                   const std::vector<std::string>& words) {
    Forest forest;
    refuses(forest, ErrorCode::kInvalidForest, words, [&](Forest& target) { target = Forest::from_nodes(nodes, requests); });
}

/// Roots 3 and 4; a child comes before its parent.
std::vector<Node> two_trees() {
    return {{.parent = 2, .tokens = 5, .kv_begin = 0},
            {.parent = 3, .tokens = 7, .kv_begin = 100},
            {.parent = 3, .tokens = 0, .kv_begin = 200},
            {.parent = -1, .tokens = 11, .kv_begin = 300},
            {.parent = -1, .tokens = 13, .kv_begin = 400}};
}

}  // namespace

TEST_CASE("forest: several roots, ids in any order, requests anywhere") {
    const Forest leaves = Forest::from_nodes(two_trees());
    REQUIRE(leaves.request_capacity() == 3);
    CHECK(leaves.request_node(0) == 0);  // leaves in node order, a lone root among them
    CHECK(leaves.request_node(1) == 1);
    CHECK(leaves.request_node(2) == 4);
    CHECK(leaves.path_tokens(0) == 5 + 0 + 11);
    CHECK(leaves.path_tokens(2) == 13);
    CHECK(leaves.total_tokens() == 36);

    const std::vector<std::int32_t> attached = {3, 0, 0, Forest::kNoNode, 2, 4, 3};
    const Forest forest = Forest::from_nodes(two_trees(), attached);
    const std::vector<std::int64_t> paths = {11, 16, 16, 0, 11, 13, 11};
    for (std::int32_t r = 0; r < 7; ++r) {
        CHECK(forest.request_node(r) == attached[r]);
        CHECK(forest.path_tokens(r) == paths[r]);
    }
    CHECK(Forest::from_nodes({}).live_nodes() == 0);
    CHECK(Forest::from_nodes(two_trees(), {}).live_requests() == 0);
}

TEST_CASE("forest: a chain of 100000 nodes in any order is linear and not recursive") {
    constexpr std::int32_t kNodes = 100'000;
    for (const bool child_first : {false, true}) {
        std::vector<Node> nodes(kNodes);
        for (std::int32_t i = 0; i < kNodes; ++i) {
            nodes[i] = {.parent = child_first ? (i + 1 == kNodes ? -1 : i + 1) : i - 1, .tokens = 1, .kv_begin = i};
        }
        const Forest forest = Forest::from_nodes(nodes);
        REQUIRE(forest.live_requests() == 1);
        CHECK(forest.path_tokens(0) == kNodes);
        CHECK(forest.to_string().size() < 4000);
        nodes[child_first ? kNodes - 1 : 0].parent = kNodes / 2;  // the root hangs below its own descendant
        refuses_nodes(nodes, {}, {"is its own ancestor"});
    }
}

TEST_CASE("forest: from_nodes refuses what is no forest and names the node") {
    const auto with = [](std::size_t id, const Node& node) {
        std::vector<Node> nodes = two_trees();
        nodes[id] = node;
        return nodes;
    };
    refuses_nodes(with(1, {.parent = 1}), {}, {"node 1", "its own ancestor"});
    refuses_nodes(with(3, {.parent = 0}), {}, {"node ", "its own ancestor"});  // 0 -> 2 -> 3 -> 0
    refuses_nodes(with(4, {.parent = 5}), {}, {"node 4", "parent 5", "5 nodes"});
    refuses_nodes(with(4, {.parent = -2}), {}, {"node 4", "parent -2"});
    refuses_nodes(with(2, {.parent = 3, .tokens = -1}), {}, {"node 2", "-1 tokens"});
    refuses_nodes(with(2, {.parent = 3, .tokens = 1, .kv_begin = -8}), {}, {"node 2", "-8"});
    refuses_nodes(with(2, {.parent = 3, .tokens = 2, .kv_begin = kLastPosition - 1}), {}, {"node 2", "4294967295"});
    refuses_nodes(with(2, {.parent = 3, .tokens = INT64_MAX, .kv_begin = INT64_MAX}), {}, {"node 2"});
    refuses_nodes(two_trees(), {0, 5}, {"request 1", "node 5", "5 nodes"});
    refuses_nodes(two_trees(), {-2}, {"request 0", "node -2"});
    CHECK_THROWS_AS(Forest::from_nodes(with(4, {.parent = 5})), Error);  // the other overload looks at parents by itself
    CHECK_NOTHROW(Forest::from_nodes(with(2, {.parent = 3, .tokens = 1, .kv_begin = kLastPosition - 1})));
}

TEST_CASE("forest: a refused update names what it was asked for and changes nothing") {
    Forest forest = Forest::from_nodes(two_trees(), std::vector<std::int32_t>{0, 4, 3});
    const std::int32_t removed_node = forest.add_node({.parent = 4, .tokens = 1, .kv_begin = 500});
    const std::int32_t removed_request = forest.add_request(1);
    forest.remove_node(removed_node);
    forest.remove_request(removed_request);
    const std::string node = "node " + std::to_string(removed_node), request = "request " + std::to_string(removed_request);
    const auto bad = [&](const std::vector<std::string>& words, const std::function<void(Forest&)>& call) {
        refuses(forest, ErrorCode::kInvalidForest, words, call);
    };
    bad({"node 3", "2 children", "1 requests"}, [](Forest& f) { f.remove_node(3); });
    bad({"node 0", "0 children", "1 requests"}, [](Forest& f) { f.remove_node(0); });
    bad({"node -1"}, [](Forest& f) { f.remove_node(Forest::kNoNode); });
    bad({node}, [&](Forest& f) { f.remove_node(removed_node); });
    bad({node}, [&](Forest& f) { f.add_request(removed_node); });
    bad({node}, [&](Forest& f) { f.add_node({.parent = removed_node}); });  // the id it would get: its own parent
    bad({"node -7"}, [](Forest& f) { f.add_node({.parent = -7}); });
    bad({"-3 tokens"}, [](Forest& f) { f.add_node({.parent = 0, .tokens = -3}); });
    bad({node}, [&](Forest& f) { f.append_tokens(removed_node); });
    bad({"node 0", "-1 tokens"}, [](Forest& f) { f.append_tokens(0, -1); });
    bad({"node 0", "4294967295"}, [](Forest& f) { f.append_tokens(0, kLastPosition - 4); });
    bad({"node 0"}, [](Forest& f) { f.append_tokens(0, INT64_MAX); });
    bad({node}, [&](Forest& f) { f.move_request(0, removed_node); });
    bad({request}, [&](Forest& f) { f.move_request(removed_request, 0); });
    bad({request}, [&](Forest& f) { f.remove_request(removed_request); });
    bad({"request -1"}, [](Forest& f) { f.remove_request(-1); });
    bad({request}, [&](Forest& f) { (void)f.path_tokens(removed_request); });
    bad({request}, [&](Forest& f) { (void)f.request_node(removed_request); });
    bad({node}, [&](Forest& f) { (void)f.node(removed_node); });
    CHECK_FALSE(forest.node_alive(removed_node));
    CHECK_FALSE(forest.request_alive(removed_request));
    CHECK_FALSE(forest.node_alive(-1));
    CHECK_FALSE(forest.request_alive(99));

    // One of several nodes is full: none of the others may have grown.
    forest.append_tokens(4, kLastPosition - 413);
    bad({"node 4", "4294967295"}, [](Forest& f) { f.append_token_to_each_request(); });
}

TEST_CASE("forest: one token for each node with requests, however many these are") {
    Forest forest = Forest::from_nodes(two_trees(), std::vector<std::int32_t>{0, 0, 3, Forest::kNoNode});
    forest.remove_request(forest.add_request(1));  // removed: node 1 must not grow
    forest.append_token_to_each_request();
    CHECK(forest.node(0).tokens == 6);
    CHECK(forest.node(1).tokens == 7);
    CHECK(forest.node(3).tokens == 12);
    CHECK(forest.node(4).tokens == 13);
    CHECK(forest.total_tokens() == 38);
    CHECK(forest.path_tokens(1) == 18);
    forest.move_request(1, 4);
    forest.move_request(0, Forest::kNoNode);
    forest.append_token_to_each_request();
    CHECK(forest.node(0).tokens == 6);
    CHECK(forest.node(4).tokens == 14);
    CHECK(forest.path_tokens(0) == 0);
}

TEST_CASE("forest: ids are stable, and given out again only after removal") {
    Forest forest = Forest::from_nodes(two_trees(), std::vector<std::int32_t>{0, 1});
    forest.move_request(0, 3);
    forest.remove_node(0);
    forest.remove_node(2);  // its only child is gone
    forest.remove_request(1);
    CHECK(forest.live_nodes() == 3);
    CHECK(forest.node_capacity() == 5);
    CHECK(forest.total_tokens() == 31);
    const std::int32_t first = forest.add_node({.parent = 4, .tokens = 3, .kv_begin = 600});
    const std::int32_t second = forest.add_node({.parent = first, .tokens = 2, .kv_begin = 610});
    CHECK(std::min(first, second) == 0);
    CHECK(std::max(first, second) == 2);
    CHECK(forest.add_node({.parent = -1}) == 5);
    CHECK(forest.add_request(second) == 1);
    CHECK(forest.add_request(second) == 2);
    CHECK(forest.path_tokens(1) == 2 + 3 + 13);
    CHECK(forest.path_tokens(0) == 11);
    // A new node owes nothing to the one whose id it has.
    forest.remove_request(1);
    forest.remove_request(2);
    forest.remove_node(second);
    CHECK_NOTHROW(forest.remove_node(first));
}

TEST_CASE("forest: copies are independent and known as other forests") {
    Forest forest = Forest::from_nodes(two_trees());
    Forest copy = forest, assigned;
    assigned = forest;
    CHECK(copy.impl().identity != forest.impl().identity);
    CHECK(assigned.impl().identity != forest.impl().identity);
    const std::string before = seen(copy);
    forest.append_tokens(0, 9);
    forest.remove_request(1);
    forest.add_node({.parent = 0});
    CHECK(seen(copy) == before);
    copy.append_tokens(1, 2);
    CHECK(forest.node(1).tokens == 7);
    const Forest moved = std::move(copy);
    CHECK(moved.node(1).tokens == 9);
}

TEST_CASE("forest: check_pages names node, position and entry") {
    // Positions 0..19 and 32..40 of pages of 8: entries 0..2 and 4..5.
    Forest forest = Forest::from_nodes(std::vector<Node>{{.parent = -1, .tokens = 20, .kv_begin = 0},
                                                         {.parent = 0, .tokens = 9, .kv_begin = 32},
                                                         {.parent = 0, .tokens = 0, .kv_begin = 4000}});
    std::vector<std::int32_t> pages = {5, 0, 3, -1, 2, 1};  // entry 3 belongs to nobody
    CHECK_NOTHROW(forest.check_pages(pages, 6, 8));
    const auto bad = [&](const std::vector<std::string>& words, std::int64_t pool, std::int32_t size) {
        refuses(forest, ErrorCode::kInvalidArgument, words, [&](Forest& f) { f.check_pages(pages, pool, size); });
    };
    bad({"node 0", "entry 0", "is 5", "position 0"}, 5, 8);
    pages[5] = -4;
    bad({"node 1", "entry 5", "is -4", "position 40"}, 6, 8);
    pages.pop_back();
    bad({"node 1", "entry 5", "5 entries", "position 40"}, 6, 8);
    bad({"page size 0"}, 6, 0);
    bad({"page size -16"}, 6, -16);
    forest.remove_request(0);
    forest.remove_node(1);
    CHECK_NOTHROW(forest.check_pages(pages, 6, 8));
}
