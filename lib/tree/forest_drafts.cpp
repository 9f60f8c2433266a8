// SPDX-License-Identifier: Apache-2.0
// Drafts of a forest: a node whose requests see parts of it, added and removed as one.
#include <algorithm>

#include "base/error.h"
#include "tree/forest_impl.h"

namespace sapwood {

void Forest::Impl::check_no_draft(std::int32_t id, const char* asked) const {
    if (drafts.empty() || !drafts.contains(id)) return;
    raise(ErrorCode::kInvalidForest, std::string(asked) + " asked for node " + std::to_string(id) +
                                         ", which is a draft: its requests and its length come and go with its mask "
                                         "(replace_draft, remove_draft)");
}

std::int32_t Forest::Impl::take_requests(std::int32_t count) {
    // Neighbouring ids out of those given back, else behind the last.
    std::sort(free_requests.begin(), free_requests.end(), std::greater<>());
    for (std::size_t begin = 0, i = 0; i < free_requests.size() && count > 0; ++i) {
        if (i > begin && free_requests[i] != free_requests[i - 1] - 1) begin = i;
        if (static_cast<std::int32_t>(i - begin) + 1 < count) continue;
        const std::int32_t first = free_requests[i];
        free_requests.erase(free_requests.begin() + static_cast<std::ptrdiff_t>(begin),
                            free_requests.begin() + static_cast<std::ptrdiff_t>(i + 1));
        return first;
    }
    const auto first = static_cast<std::int32_t>(request_node.size());
    request_node.resize(request_node.size() + static_cast<std::size_t>(count), kDead);
    return first;
}

DraftIds Forest::add_draft(std::int32_t parent, std::int64_t kv_begin, const DraftMask& mask) {
    Impl& impl = *impl_;
    const std::int32_t node =
        add_node({.parent = parent, .tokens = mask.columns(), .kv_begin = kv_begin});  // throws if it is wrong
    const std::int32_t first = impl.take_requests(mask.rows());
    std::fill_n(impl.request_node.begin() + first, mask.rows(), node);
    impl.request_count[node] = mask.rows();
    impl.live_requests += mask.rows();
    impl.drafts[node] = {mask, first};
    return {node, first};
}

void Forest::replace_draft(std::int32_t node, std::int64_t kv_begin, const DraftMask& mask) {
    Impl& impl = *impl_;
    impl.check_node_id(node, "replace_draft");
    const auto draft = impl.drafts.find(node);
    if (draft == impl.drafts.end()) {
        raise(ErrorCode::kInvalidForest,
              "replace_draft asked for node " + std::to_string(node) + ", which is no draft (add_draft makes one)");
    }
    if (mask.rows() != draft->second.mask.rows()) {
        raise(ErrorCode::kInvalidForest, "replace_draft of node " + std::to_string(node) + ": the mask has " +
                                             std::to_string(mask.rows()) + " rows, the draft " +
                                             std::to_string(draft->second.mask.rows()) +
                                             " requests; remove_draft and add_draft change their number");
    }
    const Node fresh = {.parent = impl.nodes[node].parent, .tokens = mask.columns(), .kv_begin = kv_begin};
    impl.check_run(node, fresh);
    impl.tokens += fresh.tokens - impl.nodes[node].tokens;
    impl.nodes[node] = fresh;
    draft->second.mask = mask;
    ++impl.structure;
}

void Forest::remove_draft(std::int32_t node) {
    Impl& impl = *impl_;
    impl.check_node_id(node, "remove_draft");
    const auto draft = impl.drafts.find(node);
    if (draft == impl.drafts.end()) {
        raise(ErrorCode::kInvalidForest,
              "remove_draft asked for node " + std::to_string(node) + ", which is no draft (remove_node removes others)");
    }
    const std::int32_t first = draft->second.first_request, rows = draft->second.mask.rows();
    impl.drafts.erase(draft);
    for (std::int32_t r = first; r < first + rows; ++r) remove_request(r);
    remove_node(node);
}

const DraftMask* Forest::draft_mask(std::int32_t node) const noexcept {
    const auto draft = impl_->drafts.find(node);
    return draft == impl_->drafts.end() ? nullptr : &draft->second.mask;
}

std::int32_t Forest::draft_first_request(std::int32_t node) const {
    const auto draft = impl_->drafts.find(node);
    if (draft == impl_->drafts.end()) {
        raise(ErrorCode::kInvalidForest, "draft_first_request asked for node " + std::to_string(node) + ", which is no draft");
    }
    return draft->second.first_request;
}

}  // namespace sapwood
