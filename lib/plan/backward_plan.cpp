// SPDX-License-Identifier: Apache-2.0
#include "plan/backward_plan.h"

#include <algorithm>

#include "base/error.h"
#include "plan/backward_balance.h"
#include "plan/backward_tiles.h"
#include "plan/packed_plan.h"
#include "plan/packed_tiles.h"

namespace sapwood {
namespace {

/// Tiles of a key block's longest part. A step is a tile of one query head; an item has the steps of a whole group. Measured on an
/// H100: a sixth of what a multiprocessor does in all evens out well, and beyond 333 steps an item costs more balance than its
/// beginning and end save; where even that cuts all blocks, twelve items a multiprocessor are enough. Not so of a pack with arrays:
/// what they leave of these tiles is not known, and one block that they leave whole must not outlast the others.
std::int64_t longest_part(std::int64_t tiles, const PackedProblem& problem, int sms, bool arrays) {
    // What a part costs beyond its tiles, K and V once more and fp32 additions of dK and dV, is about two of them.
    constexpr std::int64_t kGoodSteps = 333, kLeastTiles = 24;
    const std::int64_t group = problem.q_heads / problem.kv_heads, steps = tiles * problem.q_heads / sms;
    if (arrays) return std::min(steps / 6, kGoodSteps) / group;
    const std::int64_t limit = std::max(std::min(steps / 6, kGoodSteps), steps / 12);
    return std::max(limit / group, kLeastTiles);
}

/// How a pass by rows is laid out: KV heads that are worked on together, and steps of an item.
struct RowLayout {
    std::int32_t section = 1;
    std::int64_t least_steps, most_steps;
};
/// The more heads, the fewer blocks at work add to the same tiles of dQ, and wait for each other where order counts. But what they
/// work on, tiles of dQ with their Q and dO, is to stay in L2 until the last one has added. Items are shorter than longest first
/// has them, because short ones are not kept for the end; below 48 steps beginning and end cost too much.
RowLayout lay_out_rows(const PackedProblem& problem) {
    constexpr std::int64_t kResidentBytes = 24 << 20, kMostSteps = 96;
    const std::int32_t group = problem.q_heads / problem.kv_heads;
    const std::int64_t tile_bytes = abi::kRowTile * (2 * problem.head_dim_v + 6 * problem.head_dim);
    const bool many = group <= 2 || tile_bytes * 8 * kMostSteps <= kResidentBytes;
    RowLayout layout;
    for (std::int32_t next = 1; next <= (many ? 8 : 4); ++next)
        if (problem.kv_heads % next == 0) layout.section = next;
    layout.least_steps = group <= 2 ? 48 : 64;
    layout.most_steps = std::clamp(kResidentBytes / (tile_bytes * layout.section), layout.least_steps, kMostSteps);
    return layout;
}
std::int64_t longest_part_by_rows(std::int64_t tiles, const PackedProblem& problem, int sms) {
    const RowLayout layout = lay_out_rows(problem);
    const std::int64_t group = problem.q_heads / problem.kv_heads, steps = tiles * problem.q_heads / sms;
    return std::max<std::int64_t>(1, std::clamp(steps / 24, layout.least_steps, layout.most_steps) / group);
}

/// Of a list of longest first: whether most of its work is on short blocks, which come by length, each time over rows that L2 has
/// long given up. (A long one's parts lie side by side, and so do those of its neighbours.)
bool goes_through_dram(const BackwardList& list, std::int64_t head_bytes) {
    constexpr std::int64_t kL2Bytes = 50 << 20;
    if (head_bytes < 2 * kL2Bytes) return false;
    std::int64_t of_short = 0;
    for (const abi::KeyBlock& block : list.blocks) of_short += block.slot == abi::KeyBlock::kNoSlot ? block.tiles : 0;
    return of_short * 2 > list.tiles;
}

/// Into how many bundles a KV head's query heads fall: one, but for long sequences, where a group's sums of dQ, with their Q and
/// dO, would go through DRAM for every block of keys. (32k tokens, 32/8 heads: 13 GB of it, and 2 % of the time at the card's
/// power.) Not where short blocks have a part in the work: their items, cut further, are mostly beginnings and ends.
std::int32_t choose_bundles(const PackedProblem& problem, std::int64_t head_bytes, std::span<const abi::KeyBlock> whole_blocks,
                            std::int64_t tiles) {
    constexpr std::int64_t kTooMuch = 100 << 20, kResidentBytes = 36 << 20, kLongTiles = 128;
    constexpr double kLong = 0.92;
    const std::int32_t group = problem.q_heads / problem.kv_heads;
    if (head_bytes < kTooMuch || whole_blocks.size() >= abi::KeyBlock::kNoSlot) return 1;
    std::int64_t of_long = 0;
    for (const abi::KeyBlock& block : whole_blocks) of_long += block.tiles >= kLongTiles ? block.tiles : 0;
    if (static_cast<double>(of_long) < kLong * static_cast<double>(tiles)) return 1;
    for (std::int32_t bundles = 1; bundles < group; ++bundles)
        if (group % bundles == 0 && head_bytes / bundles <= kResidentBytes) return bundles;
    return group;
}

}  // namespace

std::unique_ptr<PackedBackwardPlan::Impl> make_backward_plan(const PackedProblem& asked, const Pack& pack,
                                                             const PackedBackwardOptions& options, const Limits& limits) {
    auto plan = std::make_unique<PackedBackwardPlan::Impl>();
    if (options.deterministic && pack.dfs_arrays())
        raise(
            ErrorCode::kInvalidProblem,
            "a deterministic backward pass was asked for over a pack with dfs_arrays: its order of additions is the plan's, and "
            "which tiles the arrays leave is known on the device alone. Ask without `deterministic`, or give the trees as segments "
            "(Pack::from_segments)");
    plan->problem = complete(asked);
    plan->config = choose_backward_config(plan->problem, options.config, limits);
    plan->options = options;
    plan->limits = limits;
    const PackedProblem& problem = plan->problem;
    const int resident = limits.sms * plan->config.blocks;
    const std::int32_t group = problem.q_heads / problem.kv_heads, asked_heads = plan->config.heads;
    // What a KV head's blocks share in L2: Q, dO and the sums of dQ of its query heads.
    const std::int64_t head_bytes = pack.rows() * group * (2 * problem.head_dim_v + 6 * problem.head_dim);
    PackedProblem in_bundles = problem;  // as many KV heads as there are bundles
    std::int32_t better = 1;             // bundles
    const auto build = [&](bool by_rows, std::int32_t bundles) {
        plan->bundles = bundles;
        in_bundles.kv_heads = problem.kv_heads * bundles;
        plan->list.build(
            pack, plan->config.block_kv,
            [&](std::span<const abi::KeyBlock> blocks, std::int64_t tiles) {
                if (by_rows) return longest_part_by_rows(tiles, problem, resident);
                better = choose_bundles(problem, head_bytes, blocks, tiles);
                const std::int64_t rule = longest_part(tiles, in_bundles, resident, pack.dfs_arrays());
                return pack.dfs_arrays() ? rule : BackwardBalance(in_bundles, head_bytes / bundles, resident).choose(blocks, rule);
            },
            by_rows, bundles > 1);
    };
    if (asked_heads != 0 && asked_heads != group) {
        const auto refuse = [&](const std::string& where) {
            raise(ErrorCode::kInvalidProblem, "heads " + std::to_string(asked_heads) + " of a group of " + std::to_string(group) +
                                                  " in a work item were asked for " + where + ". Leave PackedConfig::heads 0");
        };
        if (options.deterministic) refuse("in a fixed order, where items walk the whole group");
        if (pack.dfs_arrays()) refuse("over a pack with dfs_arrays, where items walk the whole group");
        // Several items add to each block, so that none may go without a slot.
        const std::int64_t key_blocks = (pack.keys() + plan->config.block_kv - 1) / plan->config.block_kv;
        if (key_blocks >= abi::KeyBlock::kNoSlot)
            refuse("over " + std::to_string(key_blocks) + " blocks of keys; there are sums for fewer than " +
                   std::to_string(abi::KeyBlock::kNoSlot));
    }
    bool by_rows = options.deterministic;
    build(by_rows, asked_heads == 0 ? 1 : group / asked_heads);
    // What comes of arrays is known on the device alone: neither which blocks are short nor which rows they share.
    if (!by_rows && !pack.dfs_arrays() && asked_heads == 0) {
        if (goes_through_dram(plan->list, head_bytes)) {
            build(by_rows = true, 1);
        } else if (better > 1) {
            build(false, better);
            plan->config.heads = group / better;
        }
    }
    if (options.deterministic) plan->list.number_turns();
    if (pack.dfs_arrays()) plan->arrays.build(pack, plan->list);
    PackedBackwardInfo& info = plan->info;
    info.config = plan->config;
    info.rows = pack.rows();
    info.keys = pack.keys();
    info.visible_pairs = pack.visible_pairs();
    info.tiles = plan->list.tiles;
    info.partial_tiles = plan->list.partial_tiles;
    info.blocks = static_cast<std::int64_t>(plan->list.blocks.size());
    info.list_bytes = plan->list.bytes() + plan->arrays.bytes();
    info.dfs_arrays = pack.dfs_arrays();
    info.workspace_bytes =
        (plan->kv_sums() + plan->arrivals()) * 4 + plan->row_tiles() * abi::kRowTile * problem.q_heads * (problem.head_dim + 2) * 4;
    info.flops = 5.0 * (problem.head_dim + problem.head_dim_v) * problem.q_heads * static_cast<double>(info.visible_pairs);
    info.grid = static_cast<std::int32_t>(std::min<std::int64_t>(resident, info.blocks * in_bundles.kv_heads));  // parts counted
    plan->section_heads = by_rows ? lay_out_rows(problem).section
                                  : choose_section(in_bundles.kv_heads, head_bytes / plan->bundles, info.blocks, resident * 3 / 2);
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
