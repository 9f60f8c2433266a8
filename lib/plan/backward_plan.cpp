// SPDX-License-Identifier: Apache-2.0
#include "plan/backward_plan.h"

#include <algorithm>

#include "attention/backward_layout.h"
#include "base/error.h"
#include "plan/packed_plan.h"
#include "plan/packed_tiles.h"

namespace sapwood {
namespace {

/// Tiles of a key block's longest part. A step is a tile of one query head; an item has the steps of a whole group. Measured on an
/// H100: a sixth of what a multiprocessor does in all evens out well, and beyond 333 steps an item costs more balance than its
/// beginning and end save; where even that cuts all blocks, twelve items a multiprocessor are enough. Not so of a pack with arrays:
/// what they leave of these tiles is not known, and one block that they leave whole must not outlast the others.
std::int64_t longest_part(std::int64_t tiles, const PackedProblem& problem, int sms, bool arrays) {
    constexpr std::int64_t kGoodSteps = 333;
    const std::int64_t group = problem.q_heads / problem.kv_heads, steps = tiles * problem.q_heads / sms;
    const std::int64_t limit = std::max(std::min(steps / 6, kGoodSteps), arrays ? 0 : steps / 12);
    return limit / group;
}

}  // namespace

std::unique_ptr<PackedBackwardPlan::Impl> make_backward_plan(const PackedProblem& asked, const Pack& pack, const Limits& limits) {
    auto plan = std::make_unique<PackedBackwardPlan::Impl>();
    plan->problem = complete(asked);
    plan->limits = limits;
    const PackedProblem& problem = plan->problem;
    if (limits.target != "sm_90a" && limits.target != "host")
        raise(ErrorCode::kUnsupportedDevice, "the backward pass over packs needs sm_90a (or host), the target is " + limits.target);
    for (const int dim : {problem.head_dim, problem.head_dim_v}) {
        if (dim != 64 && dim != 128)
            raise(ErrorCode::kUnsupportedDevice,
                  "the backward pass over packs has head dims 64 and 128, not " + std::to_string(dim));
    }
    plan->list.build(pack, static_cast<std::int32_t>(abi::kBackwardKeys),
                     [&](std::int64_t tiles) { return longest_part(tiles, problem, limits.sms, pack.dfs_arrays()); });
    if (pack.dfs_arrays()) plan->arrays.build(pack, plan->list);
    PackedBackwardInfo& info = plan->info;
    info.rows = pack.rows();
    info.keys = pack.keys();
    info.visible_pairs = pack.visible_pairs();
    info.tiles = plan->list.tiles;
    info.partial_tiles = plan->list.partial_tiles;
    info.blocks = static_cast<std::int64_t>(plan->list.blocks.size());
    info.list_bytes = plan->list.bytes() + plan->arrays.bytes();
    info.dfs_arrays = pack.dfs_arrays();
    info.workspace_bytes = plan->kv_sums() * 4 + plan->row_tiles() * abi::kRowTile * problem.q_heads * (problem.head_dim + 2) * 4;
    info.flops = 5.0 * (problem.head_dim + problem.head_dim_v) * problem.q_heads * static_cast<double>(info.visible_pairs);
    info.grid = static_cast<std::int32_t>(std::min<std::int64_t>(limits.sms, info.blocks * problem.kv_heads));  // parts counted
    // What a KV head's blocks share in L2: Q, dO and the sums of dQ of its query heads.
    const std::int64_t head_bytes =
        info.rows * (problem.q_heads / problem.kv_heads) * (2 * problem.head_dim_v + 6 * problem.head_dim);
    plan->section_heads = choose_section(problem.kv_heads, head_bytes, info.blocks, limits.sms * 3 / 2);
    return plan;
}

PackedBackwardPlan::PackedBackwardPlan(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
PackedBackwardPlan::PackedBackwardPlan(PackedBackwardPlan&&) noexcept = default;
PackedBackwardPlan& PackedBackwardPlan::operator=(PackedBackwardPlan&&) noexcept = default;
PackedBackwardPlan::~PackedBackwardPlan() = default;
const PackedProblem& PackedBackwardPlan::problem() const noexcept { return impl_->problem; }
PackedBackwardInfo PackedBackwardPlan::info() const { return impl_->info; }
std::vector<std::string> PackedBackwardPlan::kernel_keys() const { return impl_->keys; }

}  // namespace sapwood
