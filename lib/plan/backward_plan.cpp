// SPDX-License-Identifier: Apache-2.0
#include "plan/backward_plan.h"

#include <algorithm>

#include "base/error.h"
#include "plan/backward_balance.h"
#include "plan/backward_tiles.h"
#include "plan/backward_waits.h"
#include "plan/packed_plan.h"
#include "plan/packed_tiles.h"
#include "plan/row_layout.h"

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

/// Row tiles from the first to the last row of the longest tree or sequence: no row of one sees a key of another.
std::int64_t longest_tree(std::span<const KeyRun> runs) {
    std::int64_t longest = 0, begin = 0, end = 0;
    for (const KeyRun& run : runs) {
        if (run.row_begin >= end) begin = run.row_begin;
        end = std::max<std::int64_t>(end, run.row_end);
        longest = std::max(longest, end - begin);
    }
    return (longest + abi::kRowTile - 1) / abi::kRowTile;
}

/// Lays out a plan's list, and again if another way turns out to be better.
class Layouts {
public:
    Layouts(PackedBackwardPlan::Impl& plan, const Pack& pack)
        : plan_(plan), pack_(pack), resident_(plan.limits.sms * plan.config.blocks) {}

    /// `asked`: bundles, 0 = chosen.
    void in_any_order(std::int32_t asked) {
        longest_first(std::max(asked, 1));
        // What comes of arrays is known on the device alone: neither which blocks are short nor which rows they share.
        if (pack_.dfs_arrays() || asked != 0) return;
        if (goes_through_dram(plan_.list, head_bytes())) {
            build(lay_out_rows(problem(), 1));
        } else if (better_ > 1) {
            longest_first(better_);
        }
    }
    /// Short passes are mostly waits and beginnings if laid out like long ones, so a few ways are tried.
    void in_fixed_order(std::int32_t asked) {
        constexpr std::int64_t kShortSteps = 400, kMostItems = 1600;
        constexpr double kCertain = 0.98;
        RowLayout best = lay_out_rows(problem(), std::max(asked, 1));
        build(best);
        // What a wait costs, in steps, and what L2 holds was measured of warpgroups and this head dimension alone.
        const bool measured = plan_.config.mainloop == Mainloop::wgmma && problem().head_dim == 128;
        if (!measured || plan_.list.tiles * problem().q_heads > kShortSteps * resident_ ||
            std::ssize(plan_.list.blocks) * problem().kv_heads > kMostItems)
            return;
        BackwardWaits waits(problem(), resident_);
        double least = kCertain * waits.makespan(plan_.list, best);
        bool is_built = true;
        for (const RowLayout& other : short_layouts(problem(), asked, longest_tree(pack_.runs()))) {
            build(other);
            const double found = waits.makespan(plan_.list, other);
            is_built = found < least;
            if (is_built) least = found, best = other;
        }
        if (!is_built) build(best);
    }

private:
    void longest_first(std::int32_t bundles) {
        PackedProblem in_bundles = problem();  // as many KV heads as there are bundles
        in_bundles.kv_heads *= bundles;
        const std::int64_t bundle_bytes = head_bytes() / bundles;
        const auto longest = [&](std::span<const abi::KeyBlock> blocks, std::int64_t tiles) {
            better_ = choose_bundles(problem(), head_bytes(), blocks, tiles);
            const std::int64_t rule = longest_part(tiles, in_bundles, resident_, pack_.dfs_arrays());
            return pack_.dfs_arrays() ? rule : BackwardBalance(in_bundles, bundle_bytes, resident_).choose(blocks, rule);
        };
        plan_.list.build(pack_, plan_.config.block_kv, longest, BlockOrder::longest_first, bundles > 1);
        plan_.bundles = bundles;
        plan_.section_heads = choose_section(in_bundles.kv_heads, bundle_bytes, std::ssize(plan_.list.blocks), resident_ * 3 / 2);
    }
    void build(const RowLayout& layout) {
        const auto longest = [&](auto, std::int64_t tiles) { return layout.longest_part(tiles, problem(), resident_); };
        plan_.list.build(pack_, plan_.config.block_kv, longest, layout.order, layout.bundles > 1);
        plan_.bundles = layout.bundles;
        plan_.section_heads = layout.section;
    }
    const PackedProblem& problem() const { return plan_.problem; }
    /// What a KV head's blocks share in L2.
    std::int64_t head_bytes() const { return pack_.rows() * (problem().q_heads / problem().kv_heads) * row_bytes(problem()); }

    PackedBackwardPlan::Impl& plan_;
    const Pack& pack_;
    int resident_;
    std::int32_t better_ = 1;  // bundles, as the longest blocks have it
};

/// That a work item can walk so many query heads of a group.
void check_heads(const PackedProblem& problem, const Pack& pack, const PackedConfig& config) {
    const std::int32_t group = problem.q_heads / problem.kv_heads;
    if (config.heads == 0 || config.heads == group) return;
    const auto refuse = [&](const std::string& where) {
        raise(ErrorCode::kInvalidProblem, "heads " + std::to_string(config.heads) + " of a group of " + std::to_string(group) +
                                              " in a work item were asked for " + where + ". Leave PackedConfig::heads 0");
    };
    if (pack.dfs_arrays()) refuse("over a pack with dfs_arrays, where items walk the whole group");
    // Several items add to each block, so that none may go without a slot.
    const std::int64_t key_blocks = (pack.keys() + config.block_kv - 1) / config.block_kv;
    if (key_blocks >= abi::KeyBlock::kNoSlot)
        refuse("over " + std::to_string(key_blocks) + " blocks of keys; there are sums for fewer than " +
               std::to_string(abi::KeyBlock::kNoSlot));
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
    check_heads(problem, pack, plan->config);
    const std::int32_t group = problem.q_heads / problem.kv_heads,
                       bundles = plan->config.heads == 0 ? 0 : group / plan->config.heads;
    Layouts layouts(*plan, pack);
    if (options.deterministic) {
        layouts.in_fixed_order(bundles);
    } else {
        layouts.in_any_order(bundles);
    }
    if (plan->bundles > 1) plan->config.heads = group / plan->bundles;
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
    info.grid = static_cast<std::int32_t>(std::min<std::int64_t>(static_cast<std::int64_t>(limits.sms) * plan->config.blocks,
                                                                 info.blocks * problem.kv_heads * plan->bundles));
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
