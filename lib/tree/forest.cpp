// SPDX-License-Identifier: Apache-2.0
#include "sapwood/forest.h"

#include <algorithm>
#include <atomic>
#include <limits>

#include "base/error.h"
#include "tree/forest_impl.h"

namespace sapwood {
namespace {

// Positions are 32-bit in the work list; the row itself is widened before it meets a stride.
constexpr std::int64_t kMaxPosition = std::numeric_limits<std::uint32_t>::max();
// Past this many pending growth entries a plan is better made anew than patched.
constexpr std::size_t kMaxJournal = 1 << 20;

std::string at(std::size_t id) { return "node " + std::to_string(id); }

/// Every parent chain must end at a root: marks each node of a chain once, so the whole check is linear.
void check_acyclic(std::span<const Node> nodes) {
    std::vector<std::int32_t> seen(nodes.size(), -1);
    for (std::size_t start = 0; start < nodes.size(); ++start) {
        std::int32_t id = static_cast<std::int32_t>(start);
        while (id >= 0 && seen[id] < 0) {
            seen[id] = static_cast<std::int32_t>(start);
            id = nodes[id].parent;
        }
        if (id >= 0 && seen[id] == static_cast<std::int32_t>(start)) {
            raise(ErrorCode::kInvalidForest, at(id) + " is its own ancestor; parents must form trees");
        }
    }
}

}  // namespace

void Forest::Impl::check_run(std::size_t id, const Node& node) {
    if (node.tokens < 0) {
        raise(ErrorCode::kInvalidForest, at(id) + " has " + std::to_string(node.tokens) + " tokens; a length must be 0 or more");
    }
    if (node.kv_begin < 0 || node.tokens > kMaxPosition || node.kv_begin > kMaxPosition - node.tokens) {
        raise(ErrorCode::kInvalidForest, at(id) + " covers KV positions " + std::to_string(node.kv_begin) + " + " +
                                             std::to_string(node.tokens) + "; positions must lie in 0.." +
                                             std::to_string(kMaxPosition));
    }
}

std::uint64_t Forest::Impl::next_identity() {
    static std::atomic<std::uint64_t> next{1};
    return next.fetch_add(1, std::memory_order_relaxed);
}

void Forest::Impl::check_node_id(std::int32_t id, const char* asked) const {
    if (id < 0 || static_cast<std::size_t>(id) >= nodes.size() || !alive[id]) {
        raise(ErrorCode::kInvalidForest, std::string(asked) + " asked for node " + std::to_string(id) +
                                             ", which does not exist; there are " + std::to_string(live_nodes) +
                                             " nodes with ids below " + std::to_string(nodes.size()));
    }
}

void Forest::Impl::check_request_id(std::int32_t id, const char* asked) const {
    if (id < 0 || static_cast<std::size_t>(id) >= request_node.size() || request_node[id] == kDead) {
        raise(ErrorCode::kInvalidForest, std::string(asked) + " asked for request " + std::to_string(id) +
                                             ", which does not exist; there are " + std::to_string(live_requests) +
                                             " requests with ids below " + std::to_string(request_node.size()));
    }
}

void Forest::Impl::grow(std::int32_t id, std::int64_t count) {
    nodes[id].tokens += count;
    tokens += count;
    if (grown.size() >= kMaxJournal || count > std::numeric_limits<std::int32_t>::max()) {
        grown.clear();
        grown_by.clear();
        ++structure;
        return;
    }
    grown.push_back(id);
    grown_by.push_back(static_cast<std::int32_t>(count));
}

Forest::Forest() : impl_(std::make_unique<Impl>()) { impl_->identity = Impl::next_identity(); }
Forest::~Forest() = default;
// A copy has a journal of its own: plans made from the original see it as another forest and plan anew once.
Forest::Forest(const Forest& other) : impl_(std::make_unique<Impl>(*other.impl_)) { impl_->identity = Impl::next_identity(); }
Forest::Forest(Forest&&) noexcept = default;
Forest& Forest::operator=(const Forest& other) {
    if (this != &other) *this = Forest(other);
    return *this;
}
Forest& Forest::operator=(Forest&&) noexcept = default;

Forest Forest::from_nodes(std::span<const Node> nodes) {
    std::vector<std::uint8_t> inner(nodes.size(), 0);
    for (const Node& node : nodes) {
        if (node.parent >= 0 && static_cast<std::size_t>(node.parent) < nodes.size()) inner[node.parent] = 1;
    }
    std::vector<std::int32_t> leaves;
    for (std::size_t id = 0; id < nodes.size(); ++id) {
        if (!inner[id]) leaves.push_back(static_cast<std::int32_t>(id));
    }
    return from_nodes(nodes, leaves);
}

Forest Forest::from_nodes(std::span<const Node> nodes, std::span<const std::int32_t> request_nodes) {
    const auto limit = static_cast<std::size_t>(std::numeric_limits<std::int32_t>::max());
    if (nodes.size() > limit || request_nodes.size() > limit) {
        raise(ErrorCode::kInvalidForest, "more than 2^31 - 1 nodes or requests");
    }
    Forest forest;
    Impl& impl = *forest.impl_;
    for (std::size_t id = 0; id < nodes.size(); ++id) {
        Impl::check_run(id, nodes[id]);
        if (nodes[id].parent < -1 || nodes[id].parent >= static_cast<std::int64_t>(nodes.size())) {
            raise(ErrorCode::kInvalidForest, at(id) + " names parent " + std::to_string(nodes[id].parent) + "; there are " +
                                                 std::to_string(nodes.size()) + " nodes, and -1 marks a root");
        }
        impl.tokens += nodes[id].tokens;
    }
    check_acyclic(nodes);
    impl.nodes.assign(nodes.begin(), nodes.end());
    impl.alive.assign(nodes.size(), 1);
    impl.child_count.assign(nodes.size(), 0);
    impl.request_count.assign(nodes.size(), 0);
    impl.live_nodes = static_cast<std::int32_t>(nodes.size());
    for (const Node& node : nodes) {
        if (node.parent >= 0) ++impl.child_count[node.parent];
    }
    for (std::size_t i = 0; i < request_nodes.size(); ++i) {
        const std::int32_t node = request_nodes[i];
        if (node < kNoNode || node >= static_cast<std::int64_t>(nodes.size())) {
            raise(ErrorCode::kInvalidForest, "request " + std::to_string(i) + " is attached to node " + std::to_string(node) +
                                                 "; there are " + std::to_string(nodes.size()) +
                                                 " nodes, and -1 means an empty path");
        }
        if (node >= 0) ++impl.request_count[node];
    }
    impl.request_node.assign(request_nodes.begin(), request_nodes.end());
    impl.live_requests = static_cast<std::int32_t>(request_nodes.size());
    return forest;
}

std::int32_t Forest::add_node(const Node& node) {
    Impl& impl = *impl_;
    const std::size_t id = impl.free_nodes.empty() ? impl.nodes.size() : impl.free_nodes.back();
    Impl::check_run(id, node);
    if (node.parent != -1) {
        impl.check_node_id(node.parent, "add_node: parent");
        impl.check_no_draft(node.parent, "add_node: parent");
    }
    if (impl.free_nodes.empty()) {
        impl.nodes.emplace_back();
        impl.alive.push_back(0);
        impl.child_count.push_back(0);
        impl.request_count.push_back(0);
    } else {
        impl.free_nodes.pop_back();
    }
    impl.nodes[id] = node;
    impl.alive[id] = 1;
    impl.child_count[id] = impl.request_count[id] = 0;
    if (node.parent >= 0) ++impl.child_count[node.parent];
    ++impl.live_nodes;
    impl.tokens += node.tokens;
    ++impl.structure;
    return static_cast<std::int32_t>(id);
}

std::int32_t Forest::add_request(std::int32_t node) {
    Impl& impl = *impl_;
    if (node != kNoNode) {
        impl.check_node_id(node, "add_request");
        impl.check_no_draft(node, "add_request");
    }
    std::int32_t id = static_cast<std::int32_t>(impl.request_node.size());
    if (impl.free_requests.empty()) {
        impl.request_node.push_back(node);
    } else {
        id = impl.free_requests.back();
        impl.free_requests.pop_back();
        impl.request_node[id] = node;
    }
    if (node >= 0) ++impl.request_count[node];
    ++impl.live_requests;
    ++impl.structure;
    return id;
}

void Forest::append_tokens(std::int32_t node, std::int64_t count) {
    Impl& impl = *impl_;
    impl.check_node_id(node, "append_tokens");
    impl.check_no_draft(node, "append_tokens");
    Node grown = impl.nodes[node];
    if (count < 0 || count > kMaxPosition) {
        raise(ErrorCode::kInvalidForest, "append_tokens asked for " + std::to_string(count) + " tokens on " + at(node));
    }
    grown.tokens += count;
    Impl::check_run(node, grown);
    if (count > 0) impl.grow(node, count);
}

void Forest::append_token_to_each_request() {
    Impl& impl = *impl_;
    // All or nothing: the ways to fail are a draft and a position past the end, so look before growing.
    for (const auto& [node, draft] : impl.drafts) {
        if (draft.mask.rows() > 0) impl.check_no_draft(node, "append_token_to_each_request");
    }
    for (std::size_t id = 0; id < impl.nodes.size(); ++id) {
        if (impl.request_count[id] > 0 && impl.nodes[id].kv_begin + impl.nodes[id].tokens >= kMaxPosition) {
            raise(ErrorCode::kInvalidForest, at(id) + " cannot grow past KV position " + std::to_string(kMaxPosition));
        }
    }
    for (std::size_t id = 0; id < impl.nodes.size(); ++id) {
        if (impl.request_count[id] > 0) impl.grow(static_cast<std::int32_t>(id), 1);
    }
}

void Forest::move_request(std::int32_t request, std::int32_t node) {
    Impl& impl = *impl_;
    impl.check_request_id(request, "move_request");
    if (node != kNoNode) {
        impl.check_node_id(node, "move_request");
        impl.check_no_draft(node, "move_request");
    }
    if (impl.request_node[request] >= 0) impl.check_no_draft(impl.request_node[request], "move_request");
    std::int32_t& where = impl.request_node[request];
    if (where >= 0) --impl.request_count[where];
    if (node >= 0) ++impl.request_count[node];
    where = node;
    ++impl.structure;
}

void Forest::remove_request(std::int32_t request) {
    Impl& impl = *impl_;
    impl.check_request_id(request, "remove_request");
    const std::int32_t node = impl.request_node[request];
    if (node >= 0) impl.check_no_draft(node, "remove_request");
    if (node >= 0) --impl.request_count[node];
    impl.request_node[request] = Impl::kDead;
    impl.free_requests.push_back(request);
    --impl.live_requests;
    ++impl.structure;
}

void Forest::remove_node(std::int32_t node) {
    Impl& impl = *impl_;
    impl.check_node_id(node, "remove_node");
    impl.check_no_draft(node, "remove_node");
    if (impl.child_count[node] > 0 || impl.request_count[node] > 0) {
        raise(ErrorCode::kInvalidForest, at(node) + " still has " + std::to_string(impl.child_count[node]) + " children and " +
                                             std::to_string(impl.request_count[node]) + " requests; remove or move them first");
    }
    if (impl.nodes[node].parent >= 0) --impl.child_count[impl.nodes[node].parent];
    impl.tokens -= impl.nodes[node].tokens;
    impl.alive[node] = 0;
    impl.free_nodes.push_back(node);
    --impl.live_nodes;
    ++impl.structure;
}

std::int32_t Forest::node_capacity() const noexcept { return static_cast<std::int32_t>(impl_->nodes.size()); }
std::int32_t Forest::request_capacity() const noexcept { return static_cast<std::int32_t>(impl_->request_node.size()); }
bool Forest::node_alive(std::int32_t id) const noexcept { return id >= 0 && id < node_capacity() && impl_->alive[id]; }
bool Forest::request_alive(std::int32_t id) const noexcept {
    return id >= 0 && id < request_capacity() && impl_->request_node[id] != Impl::kDead;
}
const Node& Forest::node(std::int32_t id) const {
    impl_->check_node_id(id, "node");
    return impl_->nodes[id];
}
std::int32_t Forest::request_node(std::int32_t request) const {
    impl_->check_request_id(request, "request_node");
    return impl_->request_node[request];
}
std::int32_t Forest::live_nodes() const noexcept { return impl_->live_nodes; }
std::int32_t Forest::live_requests() const noexcept { return impl_->live_requests; }
std::int64_t Forest::total_tokens() const noexcept { return impl_->tokens; }

std::int64_t Forest::path_tokens(std::int32_t request) const {
    std::int64_t tokens = 0;
    std::int32_t id = request_node(request);
    if (const auto draft = impl_->drafts.find(id); draft != impl_->drafts.end()) {
        tokens = draft->second.mask.seen(request - draft->second.first_request);
        id = impl_->nodes[id].parent;
    }
    for (; id >= 0; id = impl_->nodes[id].parent) tokens += impl_->nodes[id].tokens;
    return tokens;
}

void Forest::check_pages(std::span<const std::int32_t> pages, std::int64_t pool_pages, std::int32_t page_size) const {
    if (page_size <= 0) raise(ErrorCode::kInvalidArgument, "check_pages asked for page size " + std::to_string(page_size));
    for (std::int32_t id = 0; id < node_capacity(); ++id) {
        const Node& node = impl_->nodes[id];
        if (!impl_->alive[id] || node.tokens == 0) continue;
        const std::int64_t first = node.kv_begin / page_size, last = (node.kv_begin + node.tokens - 1) / page_size;
        const auto where = [&](std::int64_t position) {
            return at(id) + ", position " + std::to_string(position) + ": page table entry " + std::to_string(position / page_size);
        };
        if (last >= static_cast<std::int64_t>(pages.size())) {
            raise(ErrorCode::kInvalidArgument, where(node.kv_begin + node.tokens - 1) + " is missing; the table has " +
                                                   std::to_string(pages.size()) + " entries");
        }
        for (std::int64_t entry = first; entry <= last; ++entry) {
            if (pages[entry] < 0 || pages[entry] >= pool_pages) {
                raise(ErrorCode::kInvalidArgument, where(std::max(node.kv_begin, entry * page_size)) + " is " +
                                                       std::to_string(pages[entry]) + "; the pool has pages 0.." +
                                                       std::to_string(pool_pages - 1));
            }
        }
    }
}

std::string Forest::to_string(std::int32_t max_lines) const {
    const Impl& impl = *impl_;
    std::vector<std::vector<std::int32_t>> children(impl.nodes.size());
    std::vector<std::int32_t> roots;
    for (std::int32_t id = 0; id < node_capacity(); ++id) {
        if (!impl.alive[id]) continue;
        (impl.nodes[id].parent >= 0 ? children[impl.nodes[id].parent] : roots).push_back(id);
    }
    std::string text = std::to_string(impl.live_nodes) + " nodes, " + std::to_string(impl.live_requests) + " requests, " +
                       std::to_string(impl.tokens) + " tokens, " + std::to_string(roots.size()) +
                       (roots.size() == 1 ? " root" : " roots");
    std::vector<std::pair<std::int32_t, std::int32_t>> stack;  // node, depth
    for (auto it = roots.rbegin(); it != roots.rend(); ++it) stack.emplace_back(*it, 0);
    std::int32_t lines = 1;
    while (!stack.empty()) {
        const auto [id, depth] = stack.back();
        if (lines++ >= max_lines) return text + "\n  …";
        stack.pop_back();
        text += "\n" + std::string(2 + 2 * static_cast<std::size_t>(depth), ' ') + "#" + std::to_string(id) + " " +
                std::to_string(impl.nodes[id].tokens) + " tokens";
        if (!children[id].empty()) text += ", " + std::to_string(children[id].size()) + " children";
        if (impl.drafts.contains(id)) text += ", a draft";
        if (impl.request_count[id] > 0) text += ", " + std::to_string(impl.request_count[id]) + " requests";
        for (auto it = children[id].rbegin(); it != children[id].rend(); ++it) stack.emplace_back(*it, depth + 1);
    }
    return text;
}

}  // namespace sapwood
