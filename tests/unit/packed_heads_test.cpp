// SPDX-License-Identifier: Apache-2.0
// How a group's query heads are put together: in the forward pass where blocks of rows that they share leave fewer tiles to walk,
// in the backward pass where an item walks all of them; and where it is asked.
#include <doctest/doctest.h>

#include <functional>
#include <string>
#include <vector>

#include "plan/backward_plan.h"
#include "plan/packed_plan.h"
#include "plan/packed_tiles.h"
#include "sapwood/error.h"
#include "support/offline_limits.h"

using namespace sapwood;

namespace {

/// Sequences of `queries` rows at the end of `keys` keys each.
Pack appended(std::int32_t sequences, std::int32_t queries, std::int32_t keys) {
    std::vector<std::int32_t> cu_q, cu_k;
    for (std::int32_t i = 0; i <= sequences; ++i) cu_q.push_back(i * queries), cu_k.push_back(i * keys);
    return Pack::from_cu_seqlens(cu_q, cu_k, {.causal = true});
}
PackedProblem grouped(std::int32_t q_heads, std::int32_t kv_heads) {
    return {.q_heads = q_heads, .kv_heads = kv_heads, .head_dim = 128};
}
PackedPlanInfo planned(const PackedProblem& problem, const Pack& pack, const PackedConfig& config = {}) {
    return make_packed_plan(problem, pack, config, support::offline_limits("sm_90a"))->info;
}
PackedBackwardInfo planned_backward(const Pack& pack, const PackedBackwardOptions& options = {}) {
    return make_backward_plan(grouped(32, 8), pack, options, support::offline_limits("sm_90a"))->info;
}
std::string refusal(const std::function<void()>& plan) {
    try {
        plan();
    } catch (const Error& error) {
        return error.what();
    }
    return {};
}

}  // namespace

TEST_CASE("packed heads: a group shares blocks where sequences have few queries") {
    const PackedPlanInfo shared = planned(grouped(32, 8), appended(64, 32, 4096));
    const PackedPlanInfo alone = planned(grouped(32, 8), appended(64, 32, 4096), {.heads = 1});
    CHECK(shared.config.heads == 4);
    CHECK(alone.config.heads == 1);
    // 32 tiles of each sequence for a block of 32 rows x 4 heads; or four times for 128 rows, of four sequences.
    CHECK(shared.tiles == 64 * 32);
    CHECK(alone.tiles == 64 * 32);
    CHECK(shared.blocks == 64);
    CHECK(alone.blocks == 16);
    // Per KV head, not per query head.
    CHECK(planned(grouped(64, 8), appended(64, 16, 4096)).config.heads == 8);
    CHECK(planned(grouped(6, 1), appended(200, 16, 4096)).config.heads == 2);
}

TEST_CASE("packed heads: heads keep blocks of their own where nothing is won") {
    const Pack full_tiles = Pack::from_segments(std::vector<Segment>{{-1, 4096}, {0, 512}});
    CHECK(planned(grouped(32, 8), full_tiles).config.heads == 1);
    CHECK(planned(grouped(8, 8), appended(64, 32, 4096)).config.heads == 1);  // no group
    // One sequence: four times the blocks for four times the multiprocessors.
    CHECK(planned(grouped(32, 8), appended(1, 32, 4096)).config.heads == 1);
}

TEST_CASE("packed heads: what cannot share blocks is refused by name") {
    const auto says = [](const PackedProblem& problem, std::int32_t heads) {
        return refusal([&] { planned(problem, appended(4, 32, 512), {.heads = heads}); });
    };
    CHECK(says(grouped(6, 2), 2).find("heads 2") != std::string::npos);
    CHECK(says(grouped(6, 2), 3).find("heads 3") != std::string::npos);
    CHECK(says(grouped(64, 4), 16).find("heads 16") != std::string::npos);
    const std::vector<std::int32_t> cu = {0, 64};
    const Pack arrays = Pack::from_cu_seqlens(cu, cu, {.causal = true, .dfs_arrays = true});
    CHECK(refusal([&] { planned(grouped(8, 2), arrays, {.heads = 4}); }).find("dfs_arrays") != std::string::npos);
    CHECK(planned(grouped(8, 2), arrays).config.heads == 1);
}

TEST_CASE("packed heads: backward, a group is cut where its sums of dQ outgrow L2") {
    const auto causal = [](std::int64_t tokens) { return Pack::from_segments(std::vector<Segment>{{-1, tokens}}); };
    const PackedBackwardInfo whole = planned_backward(causal(16384)), cut = planned_backward(causal(32768));
    CHECK(whole.config.heads == 0);
    CHECK(cut.config.heads == 1);
    // dK and dV of every block are then added up: 256 blocks of 8 heads, 128 keys of K and V.
    CHECK(cut.workspace_bytes - 32768LL * 32 * (128 + 2) * 4 >= 256LL * 8 * 128 * 256 * 4);
    CHECK(planned_backward(causal(32768), {.deterministic = true}).config.heads == 0);
    CHECK(planned_backward(causal(32768), {.config = {.heads = 4}}).config.heads == 4);
    // A prompt with responses: a sixth of the work is on short blocks.
    std::vector<Segment> responses = {{-1, 8192}};
    for (int i = 0; i < 8; ++i) responses.push_back({0, 4096});
    CHECK(planned_backward(Pack::from_segments(responses)).config.heads == 0);
    const auto says = [&](const PackedBackwardOptions& options) {
        return refusal([&] { planned_backward(causal(256), options); });
    };
    const auto endless = [&] { planned_backward(causal(128LL * 65535), {.config = {.heads = 2}}); };
    CHECK(refusal(endless).find("65535 blocks of keys") != std::string::npos);
    CHECK(says({.config = {.heads = 3}}).find("heads 3") != std::string::npos);
    CHECK(says({.deterministic = true, .config = {.heads = 3}}).find("heads 3") != std::string::npos);
}
