// SPDX-License-Identifier: Apache-2.0
#include "plan/order.h"

#include <algorithm>

#include "abi.h"
#include "base/error.h"
#include "tree/forest_impl.h"

namespace sapwood {
namespace {

std::int64_t whole_chunks(std::int64_t tokens) { return (tokens + abi::kChunkTokens - 1) / abi::kChunkTokens * abi::kChunkTokens; }

/// Items of each key as chains, in rising order; -1 ends them.
struct Chains {
    std::vector<std::int32_t> first, next;
    template <class KeyOf>
    Chains(std::size_t keys, std::size_t items, KeyOf key_of) : first(keys, -1), next(items) {
        for (std::size_t i = items; i-- > 0;) {
            const std::int32_t key = key_of(i);
            if (key < 0) continue;
            next[i] = first[static_cast<std::size_t>(key)];
            first[static_cast<std::size_t>(key)] = static_cast<std::int32_t>(i);
        }
    }
};

/// Null where all is seen: then a draft is a node like any other.
const DraftMask* mask_of(const Forest& forest, std::int32_t node) {
    const DraftMask* mask = forest.draft_mask(node);
    return mask == nullptr || mask->all_seen() ? nullptr : mask;
}

}  // namespace

ForestOrder order_of(const Forest& forest) {
    const Forest::Impl& impl = forest.impl();
    const std::size_t nodes = impl.nodes.size();
    const Chains children(nodes + 1, nodes, [&](std::size_t id) {
        return !impl.alive[id] ? -1 : impl.nodes[id].parent < 0 ? static_cast<std::int32_t>(nodes) : impl.nodes[id].parent;
    });
    const Chains attached(nodes, impl.request_node.size(), [&](std::size_t id) { return std::max(impl.request_node[id], -1); });

    ForestOrder order;
    order.entries.reserve(nodes);
    order.requests.reserve(impl.request_node.size());
    order.request_entry.reserve(impl.request_node.size());
    order.shared.reserve(impl.request_node.size());
    for (std::size_t id = 0; id < impl.request_node.size(); ++id) {
        if (impl.request_node[id] == Forest::kNoNode) order.empty.push_back(static_cast<std::int32_t>(id));
    }

    // Without recursion or a stack: chains may be as deep as there are nodes, and the entries know the way up.
    std::int64_t shared = 0;  // padded depth of the lowest ancestor that the walk has returned to since the last request
    std::int32_t id = children.first[nodes], above = -1;  // the next node, and its parent's entry
    while (id >= 0) {
        const Node& node = impl.nodes[static_cast<std::size_t>(id)];
        const std::int32_t index = static_cast<std::int32_t>(order.entries.size());
        // Filled in place (there is room for all): a copy would wait for its pieces to be stored.
        ForestOrder::Entry& entry = order.entries.emplace_back();
        entry.node = id;
        entry.parent = above;
        entry.request_begin = static_cast<std::int32_t>(order.requests.size());
        entry.request_end = 0;
        entry.depth_begin = 0;
        entry.tokens = node.tokens;
        entry.padded_begin = 0;
        entry.padded = whole_chunks(node.tokens);
        entry.kv_begin = node.kv_begin;
        entry.side_by_side = false;
        entry.mask = impl.drafts.empty() ? nullptr : mask_of(forest, id);
        if (above >= 0) {
            const ForestOrder::Entry& parent = order.entries[above];
            entry.depth_begin = parent.depth_begin + parent.tokens;
            entry.padded_begin = parent.padded_begin + parent.padded;
        }
        shared = std::min(shared, entry.padded_begin);
        for (std::int32_t i = attached.first[id]; i >= 0; i = attached.next[i]) {
            if (entry.depth_begin + entry.tokens == 0) {
                order.empty.push_back(i);
                continue;
            }
            order.requests.push_back(i);
            order.request_entry.push_back(index);
            order.shared.push_back(shared);
            shared = entry.padded_begin + entry.padded;
        }
        if (const std::int32_t child = children.first[id]; child >= 0) {
            id = child;
            above = index;
            continue;
        }
        // Its subtree is complete, and that of each ancestor whose last child the walk comes from.
        for (std::int32_t done = index; done >= 0; done = above) {
            ForestOrder::Entry& complete = order.entries[done];
            complete.request_end = static_cast<std::int32_t>(order.requests.size());
            above = complete.parent;
            id = children.next[complete.node];
            // Nobody below: it and what follows it in pre-order, its subtree, are not read.
            if (complete.request_end == complete.request_begin) order.entries.resize(done);
            if (id >= 0) break;
        }
    }
    bool on_host = false;
    for (ForestOrder::Entry& entry : order.entries) {
        order.used_tokens += entry.tokens;
        if (entry.mask != nullptr) {
            order.mask_columns = std::max(order.mask_columns, entry.mask->columns());
            (entry.mask->known() ? on_host : order.masks_on_device) = true;
            for (std::int32_t row = 0; row < entry.mask->rows(); ++row) order.path_tokens += entry.mask->seen(row);
            for (ForestOrder::Entry* e = &entry; e->request_begin == entry.request_begin && e->request_end == entry.request_end;
                 e = &order.entries[static_cast<std::size_t>(e->parent)]) {
                e->side_by_side = true;
                if (e->parent < 0) break;
            }
        } else {
            order.path_tokens += entry.tokens * (entry.request_end - entry.request_begin);
        }
        if (entry.tokens > 0) order.widest = std::max(order.widest, entry.request_end - entry.request_begin);
    }
    if (on_host && order.masks_on_device) {
        raise(ErrorCode::kInvalidForest,
              "some drafts have masks on the host and some on the device; one plan takes them from one place");
    }
    return order;
}

}  // namespace sapwood
