// SPDX-License-Identifier: Apache-2.0
// An item takes as long as the slowest of what it streams through: its SM's intake, its warps' products, and the ring between them.
// Blocks draw items in the order of the list; the launch ends with the last of them, but no sooner than HBM has delivered.
//
// Constants in microseconds of an H100. Those with a source were known before; the others are fitted to the median times of the
// 5,353 configurations of the 45 FastTree cases, mostly near the best. kRoundTrip and kWarpgroupKeys were then moved by 7 and 3 %,
// towards the choices that an H200 has fastest (docs/tuning.md). tests/unit/tune_cost_test.cpp pins the choices on both.
#include "tune/cost.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <queue>
#include <vector>

#include "plan/tiles.h"

namespace sapwood::tune {
namespace {

// 64 bytes a cycle into one SM, whoever sends them.
constexpr double kIntakeBytes = 109e3;
// From launch to the first item in hand, and from the last one's end to the next kernel (dependent launches).
constexpr double kLaunch = 2.2;
// Of each item: its draw, its query and first tile by dependent look-ups, its results' way out.
constexpr double kItem = 1.7;
// Adding up eight warps' results of one row block through shared memory (docs/performance.md).
constexpr double kShareRows = 0.5;
// The copy warps' barriers and look-ups, once a tile however short.
constexpr double kTile = 0.22;
// From a stage's release to its next tile's arrival: the ring's round trip beyond copying and use. HBM's and the barriers', so the
// same whether warps or the copy engine fetch.
constexpr double kRoundTrip = 1.5;
// One warp's chain of products, maximum, exponentials and products over two chunks, head dim 128. Two warps of a scheduler fill
// each other's waits, up to what its units can do.
constexpr double kPairChain = 0.63, kPairIssue = 0.42;
constexpr double kSchedulers = 4;
// A warpgroup's tile of 64 rows: waits and barriers, and 64 keys. From the tiles of 128 keys that spec.json is fastest with. The
// second warpgroup starts half a tile late.
constexpr double kWarpgroupTile = 0.16, kWarpgroupKeys = 0.77;
// Waiting for the last item's partial results, their way through L2.
constexpr double kMerge = 2.8;

/// What the compute warps of one item do, in steps: pairs of chunks for single warps, tiles for warpgroups.
struct Steps {
    double longest = 0, all = 0;  // of the busiest unit, of all row blocks together
    std::uint32_t parts = 1;      // units that share a row block and take turns over its steps
};

class Items {
public:
    explicit Items(const DecodePlan::Impl& plan)
        : list_(plan.list),
          group_(static_cast<std::uint32_t>(group_of(plan.problem))),
          warpgroups_(plan.config.mainloop == Mainloop::wgmma),
          unit_rows_(static_cast<std::uint32_t>(plan.split_input().unit_rows)),
          units_(static_cast<std::uint32_t>(plan.split_input().units)),
          in_tile_(static_cast<std::size_t>(plan.config.block_kv) / abi::kChunkTokens),
          in_step_(warpgroups_ ? in_tile_ : 2) {}

    Steps steps(const abi::Item& item) const {
        std::array<double, 8> seen{};  // by row block: the steps in which its rows see something
        for (std::size_t c = 0; c < item.tiles * in_tile_; c += in_step_) {
            std::uint32_t blocks = 0;
            for (std::size_t i = 0; i < in_step_; ++i) blocks |= blocks_of(list_.chunks[item.chunk_begin + c + i]);
            for (std::size_t b = 0; blocks != 0; ++b, blocks >>= 1) seen[b % seen.size()] += blocks & 1;
        }
        Steps result;
        const std::uint32_t blocks = std::max(1u, (item.requests * group_ + unit_rows_ - 1) / unit_rows_);
        result.parts = std::max(1u, units_ / blocks);
        for (const double steps : seen) result.longest = std::max(result.longest, steps), result.all += steps;
        result.longest /= result.parts;
        return result;
    }
    double tokens(const abi::Item& item) const {
        double sum = 0;
        for (std::size_t c = 0; c < item.tiles * in_tile_; ++c) sum += list_.chunks[item.chunk_begin + c].tokens & abi::kTokensMask;
        return sum;
    }

private:
    std::uint32_t blocks_of(const abi::Chunk& chunk) const {
        if (chunk.row_begin >= chunk.row_end) return 0;
        return (1u << (chunk.row_end + unit_rows_ - 1) / unit_rows_) - (1u << chunk.row_begin / unit_rows_);
    }

    const WorkList& list_;
    std::uint32_t group_;
    bool warpgroups_;
    std::uint32_t unit_rows_, units_;
    std::size_t in_tile_, in_step_;
};

}  // namespace

PlanCost launch_cost(const DecodePlan::Impl& plan) {
    const DecodeProblem& problem = plan.problem;
    const DecodeConfig& config = plan.config;
    const bool warpgroups = config.mainloop == Mainloop::wgmma;
    // The copy engine takes pages of many tokens off the copy warps (attention/decode_tensor_chunks.h).
    const bool by_warps = !warpgroups || problem.page_size == 1;
    const double tile_us = by_warps ? kTile : 0;
    const double warpgroup_tile = kWarpgroupTile + kWarpgroupKeys * config.block_kv / 64;
    const double token_bytes = cost_model(problem, config).token_bytes;
    const double values = (problem.head_dim + problem.head_dim_v) / 256.0;
    const double workers = plan.grid();
    const Items items(plan);

    std::priority_queue<double, std::vector<double>, std::greater<>> free_at;
    double drawn_out = 0, arithmetic = 0;
    for (const abi::Item& item : plan.list.items) {
        const Steps steps = items.steps(item);
        // Blocks of one SM share its intake and its schedulers.
        const double load = items.tokens(item) * token_bytes * config.blocks / kIntakeBytes + item.tiles * tile_us;
        const double products =
            warpgroups ? steps.longest * warpgroup_tile * values
                       : std::max(steps.longest * kPairChain, steps.all * config.blocks / kSchedulers * kPairIssue) * values;
        // Warps that share rows share a tile's chunks, and it is free once they have multiplied. Warpgroups that share rows take
        // whole tiles in turn, which is no sooner done with any of them, and make the next one's scores before they take this
        // one's values.
        const double held = warpgroups ? 2 * products * steps.parts : products;
        const double ring = (item.tiles * kRoundTrip + load + held) / config.stages;
        const double shared_rows = (steps.parts - 1) * kShareRows / 7;
        const double start = kItem + (warpgroups ? (kWarpgroupTile + kWarpgroupKeys) / 2 * values : 0);
        const double us = start + std::max({load, products, ring}) + shared_rows;
        arithmetic += products * problem.kv_heads / workers;
        for (std::int32_t head = 0; head < problem.kv_heads; ++head) {
            double begin = 0;
            if (static_cast<double>(free_at.size()) >= workers) begin = free_at.top(), free_at.pop();
            free_at.push(begin + us);
            drawn_out = std::max(drawn_out, begin + us);
        }
    }
    // The two get in each other's way where they are near each other: blocks wait in turns, not all at the same time.
    const double hbm = static_cast<double>(plan.info.hbm_bytes) / kHbmBytesPerMicrosecond;
    PlanCost cost = {.us = kLaunch + std::hypot(drawn_out, hbm), .arithmetic_us = arithmetic};
    if (plan.list.slots > 0) cost.us += kMerge + static_cast<double>(plan.info.partial_bytes) / kHbmBytesPerMicrosecond;
    return cost;
}

}  // namespace sapwood::tune
