// SPDX-License-Identifier: Apache-2.0
#include "plan/packed_plan.h"

#include <algorithm>

#include "base/error.h"
#include "plan/packed_tiles.h"

namespace sapwood {
namespace {

// Of L2, for the keys and values of the heads that are worked on together: what is left beside Q and O passing through.
constexpr std::int64_t kResidentBytes = 32 << 20;

/// Tiles that the busiest multiprocessor walks: its share, or the longest block.
double tiles_on_one(const PackedList& list, std::int64_t bundles, const Limits& limits) {
    const double share = static_cast<double>(list.tiles * bundles) / limits.sms;
    return list.blocks.empty() ? share : std::max(share, static_cast<double>(list.blocks.front().tiles));
}

/// Heads share blocks where blocks of one head would walk many tiles for few of their rows: several sequences of few queries each.
void build_list(PackedPlan::Impl& plan, const Pack& pack) {
    // Tiles of one head less than half full, and a fifth less to walk: a second list is made for packs that may gain alone.
    constexpr double kFull = 0.5, kGain = 0.8;
    const std::int32_t asked = plan.config.heads;
    plan.config.heads = std::max(asked, 1);
    plan.list.build(pack, plan.block_tokens(), plan.config.block_kv);
    std::int32_t most = asked == 0 && !pack.dfs_arrays() ? 8 : 1;
    while (!can_share_block(plan.problem, plan.config, most)) most /= 2;
    const double places = static_cast<double>(plan.list.tiles) * plan.block_q() * plan.config.block_kv;
    if (most == 1 || static_cast<double>(pack.visible_pairs()) > kFull * places) return;
    PackedList shared;
    shared.build(pack, plan.block_q() / most, plan.config.block_kv);
    if (tiles_on_one(shared, plan.problem.q_heads / most, plan.limits) >
        kGain * tiles_on_one(plan.list, plan.problem.q_heads, plan.limits))
        return;
    plan.list = std::move(shared);
    plan.config.heads = most;
}

}  // namespace

std::int32_t choose_section(std::int32_t kv_heads, std::int64_t head_bytes, std::int64_t items, std::int64_t enough) {
    std::int32_t heads = 1;
    for (std::int32_t next = 1; next <= kv_heads; ++next) {
        if (kv_heads % next != 0) continue;
        const bool fits = head_bytes * next <= kResidentBytes, few = items * heads < enough;
        if (fits || few) heads = next;
    }
    return heads;
}

std::unique_ptr<PackedPlan::Impl> make_packed_plan(const PackedProblem& asked, const Pack& pack, const PackedConfig& config,
                                                   const Limits& limits) {
    auto plan = std::make_unique<PackedPlan::Impl>();
    plan->problem = complete(asked);
    plan->config = choose_config(plan->problem, config, limits);
    plan->limits = limits;
    if (plan->config.heads > 1 && pack.dfs_arrays())
        raise(ErrorCode::kInvalidProblem, "heads " + std::to_string(plan->config.heads) +
                                              " that share a block of rows were asked for over a pack with dfs_arrays, whose tile "
                                              "lists are made for one head. Leave PackedConfig::heads 0 or 1");
    build_list(*plan, pack);
    if (pack.dfs_arrays()) plan->arrays.build(pack, plan->list);
    const PackedProblem& problem = plan->problem;
    const auto blocks = static_cast<std::int64_t>(plan->list.blocks.size());
    const std::int64_t head_bytes = pack.keys() * (problem.head_dim + problem.head_dim_v) * 2;
    const std::int32_t group = problem.q_heads / problem.kv_heads / plan->config.heads;  // bundles of heads that share blocks
    plan->section_heads = group * choose_section(problem.kv_heads, head_bytes, blocks * group, 4 * limits.sms);
    PackedPlanInfo& info = plan->info;
    info.config = plan->config;
    info.rows = pack.rows();
    info.keys = pack.keys();
    info.visible_pairs = pack.visible_pairs();
    info.tiles = plan->list.tiles;
    info.partial_tiles = plan->list.partial_tiles;
    info.blocks = blocks;
    info.list_bytes = plan->list.bytes() + plan->arrays.bytes();
    info.dfs_arrays = pack.dfs_arrays();
    info.flops = 2.0 * (problem.head_dim + problem.head_dim_v) * problem.q_heads * static_cast<double>(info.visible_pairs);
    info.grid = static_cast<std::int32_t>(
        std::min<std::int64_t>(limits.sms * plan->config.blocks, blocks * problem.q_heads / plan->config.heads));
    return plan;
}

PackedPlan::PackedPlan(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
PackedPlan::PackedPlan(PackedPlan&&) noexcept = default;
PackedPlan& PackedPlan::operator=(PackedPlan&&) noexcept = default;
PackedPlan::~PackedPlan() = default;
const PackedProblem& PackedPlan::problem() const noexcept { return impl_->problem; }
PackedPlanInfo PackedPlan::info() const { return impl_->info; }
std::string PackedPlan::kernel_key() const { return impl_->key; }
std::vector<std::string> PackedPlan::kernel_keys() const { return impl_->keys; }

}  // namespace sapwood
