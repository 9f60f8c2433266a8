// SPDX-License-Identifier: Apache-2.0
#include "plan/cover.h"

#include <algorithm>
#include <deque>
#include <limits>

#include "plan/tiles.h"

namespace sapwood {
namespace {

std::int64_t end_of(const ForestOrder& order, std::int32_t entry) {
    return entry < 0 ? 0 : order.entries[entry].padded_begin + order.entries[entry].padded;
}

class Solver {
public:
    Solver(const ForestOrder& order, const CostModel& model) : order_(order), model_(model) { find_candidates(); }

    Cover solve() {
        Cover cover;
        const std::int32_t count = static_cast<std::int32_t>(order_.requests.size());
        if (count == 0) return cover;
        best_.resize(count + 1);
        from_.resize(count + 1);
        window_.resize(count + 1);
        below_.resize(order_.entries.size(), 0);
        // Children before parents: the cost below a cut must be known where the cut is weighed.
        for (std::size_t i = candidates_.size(); i-- > 0;) {
            const std::int32_t entry = candidates_[i];
            below_[entry] = run(entry, first_below(entry), order_.entries[entry].request_end);
        }
        cover.cost = run(-1, 0, count);
        collect(-1, 0, count, cover);
        return cover;
    }

private:
    struct From {
        std::int32_t begin;
        std::int32_t cut;  // -1 = one block
    };

    /// Requests attached to the entry itself come first in its range and end there: nothing of theirs lies below.
    std::int32_t first_below(std::int32_t entry) const {
        std::int32_t at = order_.entries[entry].request_begin;
        while (at < order_.entries[entry].request_end && order_.request_entry[at] == entry) ++at;
        return at;
    }

    /// Cuts nested deeper than this on one path are not looked at: each level walks its requests once more.
    static constexpr std::int32_t kNesting = 32;

    /// A cut at c can at best save one re-read of the path to c for each block that the requests below it need, and costs at least
    /// one partial result for each of them. Subtrees that fit one block need no re-read.
    void find_candidates() {
        std::vector<std::int32_t> depth(order_.entries.size(), 0);  // candidates on the path, the entry included
        for (std::size_t i = 0; i < order_.entries.size(); ++i) {
            const ForestOrder::Entry& entry = order_.entries[i];
            const std::int64_t all = entry.request_end - entry.request_begin;
            const std::int32_t index = static_cast<std::int32_t>(i);
            depth[i] = entry.parent < 0 ? 0 : depth[static_cast<std::size_t>(entry.parent)];
            // An empty node may be cut too: it stands for the path above it, for its own requests alone.
            if (all <= model_.capacity || end_of(order_, index) == 0) continue;
            const std::int64_t below = entry.request_end - first_below(index);
            if (below == 0) continue;
            // Of a chain of nodes with the same requests only the last can be a useful cut.
            if (i + 1 < order_.entries.size() && order_.entries[i + 1].parent == index &&
                order_.entries[i + 1].request_end == entry.request_end &&
                order_.entries[i + 1].request_begin == entry.request_begin) {
                continue;
            }
            const double blocks = static_cast<double>((all + model_.capacity - 1) / model_.capacity);
            const double saving = blocks * (model_.item_bytes + bytes(end_of(order_, index)) * model_.reread);
            if (saving > static_cast<double>(below) * model_.partial_bytes && depth[i] < kNesting) {
                candidates_.push_back(index);
                ++depth[i];
            }
        }
    }

    double bytes(std::int64_t tokens) const { return static_cast<double>(tokens) * model_.token_bytes; }

    /// What starting a block at request i costs, with what it reads again inside the region below `top`.
    double start_cost(const CostModel& model, std::int32_t i, std::int32_t begin, std::int64_t top_tokens) const {
        const std::int64_t again = i == begin ? 0 : std::max<std::int64_t>(0, order_.shared[i] - top_tokens);
        return model.item_bytes + static_cast<double>(again) * model.token_bytes * model.reread;
    }

    /// A cut at c: its requests in whole blocks of their own down to c, one partial result a crossing (two for the first cut on a
    /// path: what was final above becomes partial too), and the best of what lies below.
    double cut_cost(std::int32_t c, std::int32_t top, std::int32_t begin, std::int64_t top_tokens) const {
        const ForestOrder::Entry& entry = order_.entries[c];
        const std::int64_t all = entry.request_end - entry.request_begin, below = entry.request_end - first_below(c);
        const std::int64_t blocks = (all + model_.capacity - 1) / model_.capacity;
        const double again = bytes(end_of(order_, c) - top_tokens) * model_.reread;
        return start_cost(model_, entry.request_begin, begin, top_tokens) +
               static_cast<double>(blocks - 1) * (model_.item_bytes + again) +
               static_cast<double>(below) * model_.partial_bytes * (top < 0 ? 2 : 1) + below_[c];
    }

    /// Where the requests of an edge's candidate end; -1 behind the last.
    std::int32_t end_of_edge(std::vector<std::int32_t>::const_iterator edge) const {
        return edge == edges_.end() ? -1 : order_.entries[*edge].request_end;
    }

    /// Shortest path over the boundaries begin..end of the region below `top`; fills best_ and from_.
    double run(std::int32_t top, std::int32_t begin, std::int32_t end) {
        if (begin == end) return 0;
        const std::int64_t top_tokens = end_of(order_, top);
        // Candidates inside the region, by where their requests end.
        edges_.clear();
        const auto inside = std::upper_bound(candidates_.begin(), candidates_.end(), top);
        for (auto it = inside; it != candidates_.end() && order_.entries[*it].request_begin < end; ++it) {
            if (order_.entries[*it].request_begin >= begin) edges_.push_back(*it);
        }
        std::sort(edges_.begin(), edges_.end(),
                  [&](std::int32_t a, std::int32_t b) { return order_.entries[a].request_end < order_.entries[b].request_end; });
        auto edge = edges_.begin();
        std::int32_t edge_end = end_of_edge(edge);
        const CostModel model = model_;  // a copy: what is written could be the model's, for all that the compiler knows
        double* const best = best_.data();
        From* const from = from_.data();
        Start* head = window_.data();  // … tail: starts with rising costs
        Start* tail = head;
        best[begin] = 0;
        for (std::int32_t j = begin + 1; j <= end; ++j) {
            const double cost = best[j - 1] + start_cost(model, j - 1, begin, top_tokens);
            while (tail > head && tail[-1].cost >= cost) --tail;
            *tail++ = {j - 1, cost};
            while (head->start < j - model.capacity) ++head;
            best[j] = head->cost;
            from[j] = {head->start, -1};
            for (; edge_end == j; edge_end = end_of_edge(++edge)) {
                const std::int32_t start = order_.entries[*edge].request_begin;
                const double cut = best[start] + cut_cost(*edge, top, begin, top_tokens);
                if (cut < best[j]) {
                    best[j] = cut;
                    from[j] = {start, *edge};
                }
            }
        }
        return best_[end];
    }

    void collect(std::int32_t top, std::int32_t begin, std::int32_t end, Cover& cover) {
        // from_ of this region is overwritten by the next run: take the steps first.
        std::vector<std::pair<std::int32_t, From>> steps;
        for (std::int32_t j = end; j > begin; j = from_[j].begin) steps.emplace_back(j, from_[j]);
        for (auto it = steps.rbegin(); it != steps.rend(); ++it) {
            const auto& [stop, from] = *it;
            if (from.cut < 0) {
                cover.blocks.push_back({from.begin, stop, top, -1});
                continue;
            }
            ++cover.cuts;
            for (std::int32_t i = from.begin; i < stop; i += model_.capacity) {
                cover.blocks.push_back({i, std::min(i + model_.capacity, stop), top, from.cut});
            }
            const std::int32_t below = first_below(from.cut);
            run(from.cut, below, stop);
            collect(from.cut, below, stop, cover);
        }
    }

    struct Start {
        std::int32_t start;
        double cost;
    };
    const ForestOrder& order_;
    const CostModel& model_;
    std::vector<std::int32_t> candidates_;  // entries, rising
    std::vector<std::int32_t> edges_;
    std::vector<double> best_, below_;
    std::vector<From> from_;
    std::vector<Start> window_;
};

}  // namespace

CostModel cost_model(const DecodeProblem& problem, const DecodeConfig& config) {
    CostModel model;
    model.token_bytes = static_cast<double>(problem.head_dim + problem.head_dim_v) *
                        static_cast<double>(kv_dtype_bytes(problem.kv_dtype, problem.dtype));
    model.values_a_byte = (problem.head_dim + problem.head_dim_v) / model.token_bytes;
    model.partial_bytes = group_of(problem) * (problem.head_dim_v + 1) * 4.0 * 2.0;
    model.capacity = static_cast<std::int32_t>(abi::decode_block_q(shape_of(problem, config))) / group_of(problem);
    return model;
}

Cover make_cover(const ForestOrder& order, const CostModel& model) { return Solver(order, model).solve(); }

void entries_of(const ForestOrder& order, const Block& block, std::vector<std::int32_t>& entries) {
    entries.clear();
    // The path of the first request, then every entry whose requests begin inside the block: pre-order keeps those together.
    const std::int32_t last = block.bottom >= 0 ? block.bottom : order.request_entry[block.request_begin];
    for (std::int32_t e = last; e != block.top; e = order.entries[e].parent) entries.push_back(e);
    std::reverse(entries.begin(), entries.end());
    if (block.bottom >= 0) return;
    for (std::size_t e = static_cast<std::size_t>(last) + 1;
         e < order.entries.size() && order.entries[e].request_begin < block.request_end; ++e) {
        entries.push_back(static_cast<std::int32_t>(e));
    }
}

std::vector<CoverItem> written_out(const ForestOrder& order, const Cover& cover) {
    std::vector<CoverItem> items(cover.blocks.size());
    for (std::size_t i = 0; i < items.size(); ++i) {
        entries_of(order, cover.blocks[i], items[i].entries);
        for (std::int32_t r = cover.blocks[i].request_begin; r < cover.blocks[i].request_end; ++r) items[i].requests.push_back(r);
    }
    return items;
}

double cost_of(const ForestOrder& order, const CostModel& model, std::span<const CoverItem> items) {
    std::vector<std::int32_t> loads(order.entries.size(), 0), parts(order.requests.size(), 0);
    for (const CoverItem& item : items) {
        for (const std::int32_t entry : item.entries) ++loads[entry];
        for (const std::int32_t request : item.requests) ++parts[request];
    }
    double cost = static_cast<double>(items.size()) * model.item_bytes;
    for (std::size_t e = 0; e < loads.size(); ++e) {
        cost += std::max(0, loads[e] - 1) * static_cast<double>(order.entries[e].padded) * model.token_bytes * model.reread;
    }
    for (const std::int32_t count : parts) cost += (count > 1 ? count : 0) * model.partial_bytes;
    return cost;
}

}  // namespace sapwood
