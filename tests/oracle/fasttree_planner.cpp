// SPDX-License-Identifier: Apache-2.0
#include "oracle/fasttree_planner.h"

#include <algorithm>

namespace sapwood::oracle {
namespace {

std::int64_t ceil_div(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

class Planner {
public:
    Planner(std::span<const FastTreeNode> nodes, const FastTreeSettings& settings)
        : nodes_(nodes), settings_(settings), children_(nodes.size()), below_(nodes.size(), 0) {
        plan_.q_tile = settings.q_tile;
        plan_.kv_split = {settings.kv_split[0], settings.kv_split[0]};
        kv_tile_ = settings.kv_tile;
        for (std::size_t v = nodes.size(); v-- > 0;) {
            below_[v] += static_cast<std::int64_t>(nodes[v].requests.size());
            if (nodes[v].parent >= 0) below_[nodes[v].parent] += below_[v];
        }
        for (std::size_t v = 0; v < nodes.size(); ++v) {
            if (nodes[v].parent >= 0 && below_[v] > 0) children_[nodes[v].parent].push_back(static_cast<std::int32_t>(v));
        }
    }

    FastTreePlan run() {
        for (int round = 0; round < 3; ++round) {
            assign();
            const PerPhase parallel = parallelism();
            plan_.parallelism.push_back(parallel);
            const auto within = [](std::int64_t value, std::int64_t limit) { return 0 < value && value < limit; };
            if (round == 0) {
                bool changed = false;
                for (int phase = 0; phase < 2; ++phase) {
                    if (!within(parallel[phase], settings_.grow_split_below[phase])) continue;
                    plan_.kv_split[phase] = settings_.kv_split[1];
                    changed = true;
                }
                if (!changed) break;
            } else if (round == 1) {
                int tile = -1;
                if (within(parallel[0], settings_.change_tile_below[0])) {
                    tile = 1;
                } else if (within(parallel[1], settings_.change_tile_below[1])) {
                    tile = 0;
                }
                if (tile < 0) break;
                plan_.q_tile = {plan_.q_tile[tile], plan_.q_tile[tile]};
                kv_tile_ = {kv_tile_[tile], kv_tile_[tile]};
            }
        }
        emit();
        return std::move(plan_);
    }

private:
    int phase(std::int64_t queries) const { return queries > plan_.q_tile[1] ? 0 : 1; }

    double multiply_cost(std::int64_t queries, std::int64_t keys) const {
        const std::int64_t q_tile = plan_.q_tile[phase(queries)], kv_tile = kv_tile_[phase(queries)];
        const std::int64_t last = ((queries - 1) % q_tile + q_tile) % q_tile;  // floor-mod: no queries, no padding
        const std::int64_t q_padding = q_tile - (last + 1), kv_padding = std::max<std::int64_t>(0, kv_tile - keys);
        return settings_.alpha * static_cast<double>(q_padding * settings_.group * keys) +
               settings_.beta * static_cast<double>(kv_padding * queries * settings_.group);
    }

    /// Greedy, breadth-first: a child is split off, or carries its parent's KV too.
    void assign() {
        length_.clear();
        for (const FastTreeNode& node : nodes_) length_.push_back(node.tokens);
        plan_.merged.assign(nodes_.size(), false);
        std::vector<std::int32_t> queue;
        for (std::size_t v = 0; v < nodes_.size(); ++v) {
            if (nodes_[v].parent < 0) queue.push_back(static_cast<std::int32_t>(v));
        }
        for (std::size_t at = 0; at < queue.size(); ++at) {
            const std::int32_t v = queue[at];
            std::int64_t queries = below_[v];
            for (const std::int32_t child : children_[v]) {
                const std::int64_t own = below_[child];
                const double split = multiply_cost(queries, length_[v]) + multiply_cost(own, length_[child]) +
                                     settings_.gamma * static_cast<double>(own);
                const double merge = multiply_cost(queries - own, length_[v]) + multiply_cost(own, length_[child] + length_[v]);
                if (split > merge) {
                    plan_.merged[child] = true;
                    queries -= own;
                    length_[child] += length_[v];
                }
                queue.push_back(child);
            }
        }
        // Whom each node serves: the whole subtree, less the children that carry the node's KV themselves.
        plan_.requests.assign(nodes_.size(), {});
        std::vector<std::vector<std::int32_t>> subtree(nodes_.size());
        for (std::size_t v = nodes_.size(); v-- > 0;) {
            plan_.requests[v] = subtree[v] = nodes_[v].requests;
            for (const std::int32_t child : children_[v]) {
                subtree[v].insert(subtree[v].end(), subtree[child].begin(), subtree[child].end());
                if (plan_.merged[child]) continue;
                plan_.requests[v].insert(plan_.requests[v].end(), subtree[child].begin(), subtree[child].end());
            }
        }
    }

    std::int64_t served(std::size_t v) const { return static_cast<std::int64_t>(plan_.requests[v].size()); }

    PerPhase parallelism() const {
        PerPhase parallel{};
        for (std::size_t v = 0; v < nodes_.size(); ++v) {
            const int p = phase(served(v));
            parallel[p] += settings_.kv_heads * ceil_div(served(v), plan_.q_tile[p]) * ceil_div(length_[v], plan_.kv_split[p]);
        }
        return parallel;
    }

    void emit() {
        plan_.kv_nodes.resize(nodes_.size());
        for (std::size_t v = 0; v < nodes_.size(); ++v) {
            if (served(v) == 0) continue;
            std::size_t from = v;
            plan_.kv_nodes[v].push_back(static_cast<std::int32_t>(v));
            while (plan_.merged[from]) {
                from = static_cast<std::size_t>(nodes_[from].parent);
                plan_.kv_nodes[v].insert(plan_.kv_nodes[v].begin(), static_cast<std::int32_t>(from));
            }
            const std::int64_t splits = ceil_div(length_[v], plan_.kv_split[phase(served(v))]);
            plan_.mid_rows += served(v) * splits;
            for (std::int64_t done = 0; done < served(v); done += plan_.q_tile[0]) {
                const std::int64_t piece = std::min(plan_.q_tile[0], served(v) - done);
                plan_.vnodes[phase(piece)] += splits;
                if (splits > 0) plan_.longest[phase(piece)] = std::max(plan_.longest[phase(piece)], piece);
            }
        }
    }

    std::span<const FastTreeNode> nodes_;
    const FastTreeSettings& settings_;
    std::vector<std::vector<std::int32_t>> children_;  // those with requests
    std::vector<std::int64_t> below_, length_;         // requests at or below; KV of a node and what it carries
    PerPhase kv_tile_{};
    FastTreePlan plan_;
};

}  // namespace

FastTreeSettings FastTreeSettings::published(std::int64_t q_heads, std::int64_t kv_heads) {
    const std::int64_t group = q_heads / kv_heads;
    return {.kv_heads = kv_heads, .group = group, .q_tile = {64 / group, 16 / group}};
}

std::int64_t FastTreePlan::merged_children() const { return std::count(merged.begin(), merged.end(), true); }

FastTreePlan plan_fasttree(std::span<const FastTreeNode> nodes, const FastTreeSettings& settings) {
    return Planner(nodes, settings).run();
}

}  // namespace sapwood::oracle
