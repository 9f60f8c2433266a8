// SPDX-License-Identifier: Apache-2.0
// Layouts of deterministic backward passes: how long they are said to take, and which are chosen.
#include <doctest/doctest.h>

#include <algorithm>
#include <vector>

#include "plan/backward_plan.h"
#include "plan/backward_waits.h"

using namespace sapwood;

namespace {

Pack causal(std::int64_t tokens) { return Pack::from_segments(std::vector<Segment>{{-1, tokens}}); }
PackedProblem heads(std::int32_t q, std::int32_t kv) { return {.q_heads = q, .kv_heads = kv, .head_dim = 128}; }

double makespan(const PackedProblem& problem, const Pack& pack, const RowLayout& layout, int multiprocessors = 132) {
    BackwardList list;
    list.build(
        pack, 128, [&](auto, std::int64_t tiles) { return layout.longest_part(tiles, problem, multiprocessors); }, layout.order,
        layout.bundles > 1);
    return BackwardWaits(problem, multiprocessors).makespan(list, layout);
}
std::unique_ptr<PackedBackwardPlan::Impl> planned(const PackedProblem& problem, const Pack& pack, const PackedConfig& config = {}) {
    const Limits h100 = {.target = "sm_90a", .sm = 90, .sms = 132, .max_shared_block = 232448, .max_shared_sm = 233472};
    return make_backward_plan(problem, pack, {.deterministic = true, .config = config}, h100);
}

}  // namespace

TEST_CASE("backward waits: one multiprocessor waits for nobody, and two blocks of the same rows follow each other") {
    const PackedProblem one = heads(1, 1);
    const double around = 2 * 1.25 + 0.12;
    const RowLayout whole = {.order = BlockOrder::there_and_back};
    // Two blocks of two and four row tiles, each with a beginning and an end of 1.25 steps and a last addition of 0.12.
    const Pack pack = causal(256);
    CHECK(makespan(one, pack, whole, 1) == doctest::Approx(4 + 2 + 2 * around));
    // Apart: the longer one has the last rows when the shorter one has long left them.
    CHECK(makespan(one, pack, whole, 2) == doctest::Approx(4 + around));
    // All 24 see a prompt's two blocks: one is an addition behind the other.
    const Pack full = Pack::from_cu_seqlens(std::vector{0, 24 * 64}, std::vector{0, 256}, {});
    CHECK(makespan(one, full, whole, 2) == doctest::Approx(24 + around + 1.3));
    // A hundred of them: a hundred additions to the same tile.
    const Pack many = Pack::from_cu_seqlens(std::vector{0, 64}, std::vector{0, 12800}, {});
    CHECK(makespan(one, many, whole, 100) == doctest::Approx(1 + around + 1.3 * 99));
}

TEST_CASE("backward waits: what is looked at in cells of many rows takes about as long as row by row") {
    // 14 heads of 4k tokens are looked at in cells of two tiles, seven tile by tile.
    const RowLayout whole = {.order = BlockOrder::there_and_back};
    const double fine = makespan(heads(7, 1), causal(4096), whole, 8), coarse = makespan(heads(14, 1), causal(4096), whole, 8);
    CHECK(coarse / (2 * fine) > 0.95);
    CHECK(coarse / (2 * fine) < 1.02);
}

TEST_CASE("backward plans: in a fixed order a short sequence goes there and back, a long one by rows") {
    const auto of = [](const PackedBackwardPlan::Impl& plan) { return std::pair(plan.bundles, plan.section_heads); };
    const auto whole = [](const PackedBackwardPlan::Impl& plan) {
        std::vector<int> begins;
        for (const abi::KeyBlock& block : plan.list.blocks) begins.push_back(block.key_begin);
        return plan.list.blocks.size() == 32 && begins[0] == 3968 && begins[1] == 3712 && begins[31] == 3840;
    };
    // 4k tokens: two heads of the group an item, so that the rows of all that are at work stay in L2.
    const auto grouped = planned(heads(32, 8), causal(4096)), apart = planned(heads(16, 16), causal(2048));
    CHECK(of(*grouped) == std::pair(2, 8));
    CHECK(grouped->info.config.heads == 2);
    CHECK(whole(*grouped));
    CHECK(of(*apart) == std::pair(1, 16));
    CHECK(apart->list.blocks[8].key_begin == 0);
    for (const std::int64_t tokens : {8192, 16384, 32768}) {
        const auto plan = planned(heads(32, 8), causal(tokens));
        CHECK(of(*plan) == std::pair(1, 4));
        CHECK(std::is_sorted(plan->list.blocks.begin(), plan->list.blocks.end(), [&](const auto& a, const auto& b) {
            return plan->list.spans[a.span_begin].row_begin > plan->list.spans[b.span_begin].row_begin;
        }));
    }
    CHECK(planned(heads(32, 8), causal(4096), {.mainloop = Mainloop::mma})->bundles == 1);
    // What is asked for is kept.
    CHECK(planned(heads(32, 8), causal(4096), {.heads = 4})->bundles == 1);
    CHECK(planned(heads(32, 8), causal(4096), {.heads = 1})->bundles == 4);
    CHECK(planned(heads(32, 8), causal(16384), {.heads = 1})->section_heads % 4 == 0);
}
