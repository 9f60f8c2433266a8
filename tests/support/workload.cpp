// SPDX-License-Identifier: Apache-2.0
#include "support/workload.h"

#include <fnmatch.h>

#include <algorithm>
#include <numeric>

#include "sapwood/error.h"
#include "support/rng.h"

namespace sapwood::support {

const char* layout_name(Layout layout) noexcept { return layout == Layout::random ? "random" : "contiguous"; }

std::vector<std::int32_t> perm(std::uint64_t seed, Stream stream, std::int64_t n) {
    std::vector<std::pair<std::uint64_t, std::int32_t>> keys(static_cast<std::size_t>(n));
    const Rng rng(seed, stream);
    for (std::int64_t i = 0; i < n; ++i) keys[static_cast<std::size_t>(i)] = {rng(static_cast<std::uint64_t>(i)) >> 1, i};
    std::sort(keys.begin(), keys.end());  // the index breaks ties: the same as a stable sort by the number alone
    std::vector<std::int32_t> result(keys.size());
    for (std::size_t i = 0; i < keys.size(); ++i) result[i] = keys[i].second;
    return result;
}

std::string Variant::to_string() const {
    const std::string kv = kv_dtype == KvDType::as_q ? std::string() : std::string(" KV ") + kv_dtype_name(kv_dtype);
    return std::string(dtype == DType::fp16 ? "fp16" : "bf16") + kv + " d" + std::to_string(head_dim) + " " +
           std::to_string(q_heads) + "/" + std::to_string(kv_heads) + " p" + std::to_string(page_size) + " " + layout_name(layout);
}

std::vector<Variant> CaseSpec::variants(std::optional<KvDType> kv_dtype) const {
    const KvDType kv = kv_dtype.value_or(kv_dtypes.front());
    std::vector<Variant> all;
    for (const auto dtype : dtypes)
        for (const auto dim : head_dims)
            for (const auto& [q_heads, kv_heads] : heads)
                for (const auto page : page_sizes)
                    for (const auto layout : layouts) all.push_back({dtype, dim, q_heads, kv_heads, page, layout, kv});
    return all;
}

TreeCounts count(const CaseSpec& spec) {
    TreeCounts counts;
    const std::size_t n = spec.nodes.size();
    std::vector<std::int64_t> path(n), depth(n);
    std::vector<char> used(n);
    for (std::size_t i = 0; i < n; ++i) {  // a parent always comes before its children
        const TreeNode& node = spec.nodes[i];
        const bool root = node.parent < 0;
        path[i] = node.tokens + (root ? 0 : path[static_cast<std::size_t>(node.parent)]);
        depth[i] = 1 + (root ? 0 : depth[static_cast<std::size_t>(node.parent)]);
        counts.unique_tokens += node.tokens;
        counts.requests += node.requests;
        counts.path_tokens += node.requests * path[i];
        if (path[i] == 0) counts.empty_requests += node.requests;
        counts.max_depth = std::max(counts.max_depth, depth[i]);
        used[i] = node.requests > 0;
    }
    std::int64_t deepest = 0;
    for (const DraftTree& draft : spec.drafts) {
        const auto at = static_cast<std::size_t>(draft.node);
        std::vector<std::int64_t> level(draft.parents.size());
        for (std::size_t i = 0; i < level.size(); ++i) {
            level[i] = 1 + (draft.parents[i] < 0 ? 0 : level[static_cast<std::size_t>(draft.parents[i])]);
            counts.path_tokens += path[at] + level[i];
            deepest = std::max(deepest, level[i]);
        }
        const auto rows = static_cast<std::int64_t>(level.size());
        counts.requests += rows, counts.unique_tokens += rows, counts.used_tokens += rows;
        used[at] = 1;
    }
    if (!spec.drafts.empty()) counts.max_depth = deepest;
    if (!spec.static_parents.empty() && spec.nodes[0].requests == 0) --counts.max_depth;  // the prefix
    for (std::size_t i = n; i-- > 0;) {
        if (!used[i]) continue;
        counts.used_tokens += spec.nodes[i].tokens;
        if (spec.nodes[i].parent >= 0) used[static_cast<std::size_t>(spec.nodes[i].parent)] = 1;
    }
    return counts;
}

std::int64_t count_pages(const CaseSpec& spec, std::int32_t page_size) {
    std::vector<std::int64_t> slots;
    for (const TreeNode& node : spec.nodes) slots.push_back(node.tokens);
    for (const DraftTree& draft : spec.drafts) slots[static_cast<std::size_t>(draft.node)] += std::ssize(draft.parents);
    std::int64_t pages = 0;
    for (const std::int64_t tokens : slots) pages += (tokens + page_size - 1) / page_size;
    return pages;
}

static void expect(const CaseSpec& spec, const std::string& what, std::int64_t built, const std::optional<std::int64_t>& given) {
    if (!given || *given == built) return;
    throw Error(ErrorCode::kInternal, "workload case " + spec.name + ": " + what + " is " + std::to_string(built) +
                                          ", the file says " + std::to_string(*given));
}

void verify(const CaseSpec& spec) {
    const TreeCounts counts = count(spec);
    const std::int64_t nodes = !spec.static_parents.empty() ? std::ssize(spec.static_parents)
                               : !spec.drafts.empty()       ? std::ssize(spec.drafts[0].parents)
                                                            : std::ssize(spec.nodes);
    expect(spec, "nodes", nodes, spec.check.nodes);
    expect(spec, "requests", counts.requests, spec.check.requests);
    expect(spec, "unique_tokens", counts.unique_tokens, spec.check.unique_tokens);
    expect(spec, "used_tokens", counts.used_tokens, spec.check.used_tokens);
    expect(spec, "path_tokens", counts.path_tokens, spec.check.path_tokens);
    expect(spec, "empty_requests", counts.empty_requests, spec.check.empty_requests);
    expect(spec, "max_depth", counts.max_depth, spec.check.max_depth);
    for (const auto& [page_size, pages] : spec.check.pages)
        expect(spec, "pages of " + std::to_string(page_size), count_pages(spec, page_size), pages);
}

DecodeProblem DecodeCase::problem() const {
    return {.q_heads = variant.q_heads,
            .kv_heads = variant.kv_heads,
            .head_dim = variant.head_dim,
            .head_dim_v = head_dim_v,
            .dtype = variant.dtype,
            .kv_dtype = variant.kv_dtype,
            .page_size = variant.page_size,
            .scale = scale,
            .softcap = softcap,
            .mask = mask};
}

std::int64_t DecodeCase::row_of(std::int64_t position) const {
    if (variant.page_size == 0) return position;
    const std::int64_t size = variant.page_size;
    return page_table[static_cast<std::size_t>(position / size)] * size + position % size;
}

std::int64_t DecodeCase::kv_bytes() const {
    const std::int64_t dims = variant.head_dim + (head_dim_v ? head_dim_v : variant.head_dim);
    return rows * variant.kv_heads * dims * static_cast<std::int64_t>(kv_dtype_bytes(variant.kv_dtype, variant.dtype));
}

DecodeCase build_case(const CaseSpec& spec, const Variant& variant, const BuildOptions& options) {
    verify(spec);
    DecodeCase built;
    built.name = spec.name;
    built.seed = spec.seed;
    built.variant = variant;
    built.counts = count(spec);
    built.head_dim_v = spec.head_dim_v, built.scale = spec.scale, built.softcap = spec.softcap;
    built.mask = spec.mask;
    if (!spec.static_parents.empty()) built.variant.page_size = 0;
    if (options.runs_without_pages && variant.layout == Layout::contiguous && variant.page_size == 1) built.variant.page_size = 0;

    // Nodes never share a page: each begins at the first slot of its first page.
    const std::int64_t slot = std::max(built.variant.page_size, 1);
    std::vector<Node> nodes;
    nodes.reserve(spec.nodes.size());
    std::vector<std::int32_t> listed;
    std::vector<const DraftTree*> behind(spec.nodes.size(), nullptr);
    for (const DraftTree& draft : spec.drafts) behind[static_cast<std::size_t>(draft.node)] = &draft;
    std::int64_t pages = 0, tokens = 0;
    for (std::size_t i = 0; i < spec.nodes.size(); ++i) {
        const TreeNode& node = spec.nodes[i];
        const std::int64_t draft = behind[i] != nullptr ? std::ssize(behind[i]->parents) : 0;
        nodes.push_back({.parent = node.parent, .tokens = node.tokens, .kv_begin = pages * slot});
        built.token_begin.push_back(tokens);
        tokens += node.tokens + draft;
        pages += (node.tokens + draft + options.spare_tokens + slot - 1) / slot;
        listed.insert(listed.end(), static_cast<std::size_t>(node.requests), static_cast<std::int32_t>(i));
    }
    built.rows = pages * slot;
    if (built.variant.page_size > 0) {
        if (variant.layout == Layout::random) {
            built.page_table = perm(spec.seed, Stream::pages, pages);
        } else {
            built.page_table.resize(static_cast<std::size_t>(pages));
            std::iota(built.page_table.begin(), built.page_table.end(), 0);
        }
    }
    built.request_nodes = listed;
    if (!spec.static_parents.empty()) {
        built.static_trees = {StaticTree::from_parents(spec.static_parents)};
        const std::size_t count = spec.static_parents.size();
        for (std::size_t i = 0; i < nodes.size(); i += count) {
            StaticTreeSequence& sequence = built.sequences.emplace_back();
            sequence.query_begin = std::ssize(built.sequences) * std::ssize(spec.static_parents) - std::ssize(spec.static_parents);
            if (spec.nodes[i].requests == 0) {
                sequence.prefix_begin = nodes[i].kv_begin, sequence.prefix_tokens = nodes[i].tokens;
                ++i;
            }
            sequence.tree_begin = nodes[i].kv_begin;
        }
    }
    if (spec.random_requests) {
        const auto order = perm(spec.seed, Stream::request_order, static_cast<std::int64_t>(listed.size()));
        for (std::size_t r = 0; r < listed.size(); ++r) built.request_nodes[r] = listed[static_cast<std::size_t>(order[r])];
    }
    built.forest = Forest::from_nodes(nodes, built.request_nodes);
    for (const DraftTree& draft : spec.drafts) {
        const auto at = static_cast<std::size_t>(draft.node);
        built.forest.add_draft(draft.node, nodes[at].kv_begin + nodes[at].tokens, DraftMask::from_parents(draft.parents));
        built.token_begin.push_back(built.token_begin[at] + nodes[at].tokens);
    }

    // The same integers, now as the library counts them.
    expect(spec, "Forest::live_nodes", built.forest.live_nodes(), std::ssize(spec.nodes) + std::ssize(spec.drafts));
    expect(spec, "Forest::live_requests", built.forest.live_requests(), built.counts.requests);
    expect(spec, "Forest::total_tokens", built.forest.total_tokens(), built.counts.unique_tokens);
    std::int64_t path_tokens = 0;
    for (std::int32_t r = 0; r < built.forest.request_capacity(); ++r) path_tokens += built.forest.path_tokens(r);
    expect(spec, "sum of Forest::path_tokens", path_tokens, built.counts.path_tokens);
    return built;
}

std::vector<CaseSpec> select(std::vector<CaseSpec> specs, const std::string& pattern) {
    if (pattern.empty()) return specs;
    const auto keep = [&](auto&& wanted) {
        std::vector<CaseSpec> kept;
        std::copy_if(specs.begin(), specs.end(), std::back_inserter(kept), wanted);
        return kept;
    };
    auto exact = keep([&](const CaseSpec& s) { return s.name == pattern; });  // FT1 alone, not FT10 … FT15
    if (!exact.empty()) return exact;
    if (pattern.find_first_of("*?[") != std::string::npos)
        return keep([&](const CaseSpec& s) { return fnmatch(pattern.c_str(), s.name.c_str(), 0) == 0; });
    return keep([&](const CaseSpec& s) { return s.name.starts_with(pattern); });
}

}  // namespace sapwood::support
