// SPDX-License-Identifier: Apache-2.0
// The cover against three rivals: FastTree's greedy plan, a cascade of levels, and brute force.
#include "plan/cover.h"

#include <doctest/doctest.h>

#include <map>

#include "oracle/fasttree_golden.h"
#include "oracle/fasttree_planner.h"
#include "plan/tiles.h"
#include "plan/work_list.h"
#include "support/random_drafts.h"
#include "support/random_forest.h"
#include "support/workload.h"
#include "tree/forest_impl.h"

using namespace sapwood;
using support::Dice;

namespace {

const std::filesystem::path kWorkloads = std::filesystem::path(SAPWOOD_SOURCE_DIR) / "tests/workloads";

std::vector<oracle::FastTreeNode> fasttree_nodes(const Forest& forest) {
    std::vector<oracle::FastTreeNode> nodes;
    for (std::int32_t id = 0; id < forest.node_capacity(); ++id)
        nodes.push_back({forest.node(id).parent, forest.node(id).tokens, {}});
    for (std::int32_t r = 0; r < forest.request_capacity(); ++r) {
        if (forest.request_node(r) >= 0) nodes[forest.request_node(r)].requests.push_back(r);
    }
    return nodes;
}

/// One item for each `capacity` of the requests; none if they have nothing to load.
void add_items(const ForestOrder& order, const CostModel& model, const std::vector<std::int32_t>& entries,
               const std::vector<std::int32_t>& requests, std::vector<CoverItem>& items) {
    std::vector<std::int32_t> loaded;
    for (const std::int32_t e : entries) {
        if (order.entries[e].tokens > 0) loaded.push_back(e);
    }
    if (loaded.empty()) return;
    const auto step = static_cast<std::size_t>(model.capacity);
    for (std::size_t i = 0; i < requests.size(); i += step) {
        const auto begin = requests.begin() + static_cast<std::ptrdiff_t>(i);
        items.push_back({loaded, {begin, begin + static_cast<std::ptrdiff_t>(std::min(step, requests.size() - i))}});
    }
}

std::vector<CoverItem> fasttree_items(const ForestOrder& order, const CostModel& model, const oracle::FastTreePlan& plan) {
    std::map<std::int32_t, std::int32_t> entry_of, position_of;
    for (std::size_t e = 0; e < order.entries.size(); ++e) entry_of[order.entries[e].node] = static_cast<std::int32_t>(e);
    for (std::size_t r = 0; r < order.requests.size(); ++r) position_of[order.requests[r]] = static_cast<std::int32_t>(r);
    std::vector<CoverItem> items;
    for (std::size_t v = 0; v < plan.requests.size(); ++v) {
        std::vector<std::int32_t> entries, requests;
        for (const std::int32_t node : plan.kv_nodes[v]) {
            if (entry_of.contains(node)) entries.push_back(entry_of[node]);
        }
        for (const std::int32_t r : plan.requests[v]) {
            if (position_of.contains(r)) requests.push_back(position_of[r]);
        }
        std::sort(requests.begin(), requests.end());
        add_items(order, model, entries, requests, items);
    }
    return items;
}

/// Every node by itself for all requests below it: a partial result a level.
std::vector<CoverItem> cascade_items(const ForestOrder& order, const CostModel& model) {
    std::vector<CoverItem> items;
    for (std::size_t e = 0; e < order.entries.size(); ++e) {
        std::vector<std::int32_t> requests;
        for (std::int32_t r = order.entries[e].request_begin; r < order.entries[e].request_end; ++r) requests.push_back(r);
        add_items(order, model, {static_cast<std::int32_t>(e)}, requests, items);
    }
    return items;
}

/// (request, token) pairs that the items attend, an entry counting only for requests below it.
std::int64_t attended(const ForestOrder& order, const std::vector<CoverItem>& items) {
    std::int64_t tokens = 0;
    for (const CoverItem& item : items) {
        for (const std::int32_t e : item.entries) {
            for (const std::int32_t r : item.requests) {
                const ForestOrder::Entry& entry = order.entries[e];
                if (r >= entry.request_begin && r < entry.request_end) tokens += entry.tokens;
            }
        }
    }
    return tokens;
}

/// The cheapest cover in the planner's decision space, by trying all of it: every set of cut nodes, and in each region between cuts
/// every partition of the requests into runs of at most `capacity`.
class BruteForce {
public:
    BruteForce(const ForestOrder& order, const CostModel& model) : order_(order), model_(model) {}

    double best() {
        double least = 0;
        const unsigned sets = 1u << order_.entries.size();
        for (cuts_ = 0; cuts_ < sets; ++cuts_) {
            const double cost = cost_of_cuts();
            if (cuts_ == 0 || cost < least) least = cost;
        }
        return least;
    }

private:
    bool cut(std::int32_t e) const { return (cuts_ >> e & 1) != 0; }

    double cost_of_cuts() {
        double cost = region(-1);
        std::vector<int> parts(order_.requests.size(), 1);
        for (std::int32_t c = 0; c < static_cast<std::int32_t>(order_.entries.size()); ++c) {
            if (!cut(c)) continue;
            cost += region(c);
            for (std::size_t r = 0; r < parts.size(); ++r) parts[r] += below(static_cast<std::int32_t>(r), c);
        }
        for (const int count : parts) cost += (count > 1 ? count : 0) * model_.partial_bytes;
        return cost;
    }

    /// Whether the path of r goes on below `top`.
    bool below(std::int32_t r, std::int32_t top) const {
        if (top < 0) return true;
        for (std::int32_t e = order_.entries[order_.request_entry[r]].parent, last = order_.request_entry[r]; last >= 0;
             last = e, e = e < 0 ? -1 : order_.entries[e].parent) {
            if (e == top) return true;
        }
        return false;
    }

    /// The entry that ends the region below `top` for request r: the uppermost cut on its way, or the request's own.
    std::int32_t bottom(std::int32_t r, std::int32_t top) const {
        std::int32_t result = order_.request_entry[r];
        for (std::int32_t e = result; e != top; e = order_.entries[e].parent) {
            if (cut(e)) result = e;
        }
        return result;
    }

    double bytes(std::int32_t e) const {
        return static_cast<double>(order_.entries[e].padded) * model_.token_bytes * model_.reread;
    }

    double region(std::int32_t top) {
        top_ = top;
        here_.clear();
        std::vector<bool> read(order_.entries.size());
        for (std::int32_t r = 0; r < static_cast<std::int32_t>(order_.requests.size()); ++r) {
            if (!below(r, top)) continue;
            here_.push_back(r);
            for (std::int32_t e = bottom(r, top); e != top; e = order_.entries[e].parent) read[e] = true;
        }
        double first_reads = 0;  // part of every cover, and of no cost
        for (std::int32_t e = 0; e < static_cast<std::int32_t>(read.size()); ++e) first_reads += read[e] ? bytes(e) : 0;
        least_from_.assign(here_.size(), -1);
        return partition(0) - first_reads;
    }

    /// The cheapest way to serve here_[from ..].
    double partition(std::size_t from) {
        if (from == here_.size()) return 0;
        if (least_from_[from] >= 0) return least_from_[from];
        const auto cut_of = [&](std::size_t i) {
            const std::int32_t e = bottom(here_[i], top_);
            return cut(e) ? e : -1;
        };
        double least = -1, loads = 0;
        unsigned read = 0;
        for (std::size_t i = from; i < here_.size() && i - from < static_cast<std::size_t>(model_.capacity); ++i) {
            if (cut_of(i) != cut_of(from)) break;  // the requests of a cut are in blocks of their own
            for (std::int32_t e = bottom(here_[i], top_); e != top_; e = order_.entries[e].parent) {
                if ((read >> e & 1) == 0) loads += bytes(e);
                read |= 1u << e;
            }
            const double cost = model_.item_bytes + loads + partition(i + 1);
            if (least < 0 || cost < least) least = cost;
        }
        return least_from_[from] = least;
    }

    const ForestOrder& order_;
    const CostModel& model_;
    unsigned cuts_ = 0;
    std::int32_t top_ = -1;
    std::vector<std::int32_t> here_;  // requests of the region below top_
    std::vector<double> least_from_;
};

}  // namespace

TEST_CASE("cover: the FastTree reference makes the published planner's 45 plans") {
    const auto specs = support::load_workload(kWorkloads / "fasttree.json");
    REQUIRE(oracle::golden_plans().size() == 45);
    for (const oracle::GoldenPlan& row : oracle::golden_plans()) {
        CAPTURE(row.tree);
        CAPTURE(row.q_heads);
        const auto chosen = support::select(specs, row.tree);
        REQUIRE(chosen.size() == 1);
        const support::DecodeCase built = support::build_case(chosen[0], chosen[0].variants().front());
        const auto plan =
            oracle::plan_fasttree(fasttree_nodes(built.forest), oracle::FastTreeSettings::published(row.q_heads, row.kv_heads));
        CHECK(plan.merged_children() == row.merged);
        CHECK(plan.parallelism == row.parallelism);
        CHECK(plan.q_tile == row.q_tile);
        CHECK(plan.kv_split == row.kv_split);
        CHECK(plan.vnodes == row.vnodes);
        CHECK(plan.longest == row.longest);
        CHECK(plan.mid_rows == row.mid_rows);
    }
}

TEST_CASE("cover: never dearer than FastTree's plan or a cascade of levels, and its cost is what it says") {
    int compared = 0;
    for (const char* file : {"fasttree.json", "beam.json", "fewshot.json"}) {
        for (const support::CaseSpec& spec : support::load_workload(kWorkloads / file)) {
            support::Variant variant = spec.variants().front();
            variant.page_size = 0;
            variant.layout = support::Layout::contiguous;
            const support::DecodeCase built = support::build_case(spec, variant);
            const ForestOrder order = order_of(built.forest);
            const auto nodes = fasttree_nodes(built.forest);
            for (const auto& [q_heads, kv_heads] : {std::pair{32, 32}, {32, 8}, {16, 1}}) {
                for (const std::int32_t warps : {4, 8}) {
                    const DecodeProblem problem = complete({.q_heads = q_heads, .kv_heads = kv_heads, .head_dim = 128});
                    const CostModel model = cost_model(problem, {.warps = warps});
                    REQUIRE(model.capacity == warps * 16 / (q_heads / kv_heads));
                    const Cover cover = make_cover(order, model);
                    const auto items = written_out(order, cover);
                    const auto greedy = fasttree_items(
                        order, model, oracle::plan_fasttree(nodes, oracle::FastTreeSettings::published(q_heads, kv_heads)));
                    const auto cascade = cascade_items(order, model);
                    CAPTURE(spec.name);
                    CAPTURE(q_heads);
                    CAPTURE(warps);
                    REQUIRE(attended(order, items) == order.path_tokens);
                    REQUIRE(attended(order, greedy) == order.path_tokens);
                    REQUIRE(attended(order, cascade) == order.path_tokens);
                    const double cost = cost_of(order, model, items), slack = 1e-9 * cost;
                    CHECK(cover.cost == doctest::Approx(cost).epsilon(1e-9));
                    CHECK(cost <= cost_of(order, model, greedy) + slack);
                    CHECK(cost <= cost_of(order, model, cascade) + slack);
                    ++compared;
                }
            }
        }
    }
    CHECK(compared > 2000);
}

TEST_CASE("cover: the best of its decision space") {
    int cut = 0, nested = 0;
    for (std::uint64_t seed = 0; seed < 10'000; ++seed) {
        Dice dice(seed + 31337);
        Forest forest = support::random_forest(
            dice, {.nodes = dice.between(3, 9), .requests = dice.between(5, 16), .longest = dice.one_of({20, 90})});
        for (std::int32_t id = 0; id < forest.node_capacity(); ++id) {
            if (forest.impl().child_count[id] > 1) forest.append_tokens(id, dice.one_of({0, 400, 2000}));
        }
        const ForestOrder order = order_of(forest);
        CostModel model{.token_bytes = 512, .capacity = dice.between(1, 6)};
        model.item_bytes = 512 * dice.one_of({0.1, 2.0, 30.0});
        model.partial_bytes = 512 * model.reread * dice.one_of({0.01, 0.3, 4.0});
        const Cover cover = make_cover(order, model);
        CAPTURE(seed);
        CAPTURE(forest.to_string());
        const double cost = cost_of(order, model, written_out(order, cover));
        CHECK(cover.cost == doctest::Approx(cost).epsilon(1e-9));
        CHECK(cost == doctest::Approx(BruteForce(order, model).best()).epsilon(1e-9));
        cut += cover.cuts > 0;
        nested += cover.cuts > 1;
    }
    CHECK(cut > 200);
    CHECK(nested > 5);
}

TEST_CASE("cover: none has a smaller even share than the bound by which its width is not tried") {
    int reached = 0, drafts = 0;
    for (std::uint64_t seed = 0; seed < 2'000; ++seed) {
        Dice dice(seed + 4242);
        Forest forest = support::random_forest(
            dice, {.nodes = dice.between(3, 40), .requests = dice.between(5, 60), .longest = dice.one_of({20, 900})});
        if (seed % 4 == 0) {
            forest.add_draft(0, 1'000'000, support::random_draft(dice, 40));
            ++drafts;
        }
        const ForestOrder order = order_of(forest);
        CostModel model{.token_bytes = 512, .values_a_byte = 0.5, .capacity = dice.between(1, 8)};
        model.partial_bytes = 512 * dice.one_of({0.3, 4.0, 40.0});
        const SplitInput input = {.kv_heads = dice.one_of({1, 8}),
                                  .group = dice.one_of({1, 4, 16}),
                                  .resident_blocks = 132,
                                  .sms = 132,
                                  .unit_rows = dice.one_of({16, 64}),
                                  .units = dice.one_of({2, 8}),
                                  .ring_keys = dice.one_of({64, 384})};
        const Split split = choose_split(order, make_cover(order, model), model, input);
        const double least = least_share(order, model, input);
        CAPTURE(seed);
        REQUIRE(least <= split.even_share * (1 + 1e-9));
        reached += least > split.even_share * (1 - 1e-9);
    }
    CHECK(reached > 200);
    CHECK(drafts == 500);
}
