// SPDX-License-Identifier: Apache-2.0
// Which parts of key blocks keep the multiprocessors evenly at work.
#include <doctest/doctest.h>

#include <algorithm>
#include <random>

#include "plan/backward_balance.h"
#include "plan/backward_list.h"

using namespace sapwood;

namespace {

constexpr int kSms = 132;

std::vector<abi::KeyBlock> blocks_of(std::span<const unsigned> tiles) {
    std::vector<abi::KeyBlock> blocks;
    for (const unsigned each : tiles) blocks.push_back({0, 128, abi::KeyBlock::kNoSlot, 0, each});
    return blocks;
}
std::vector<abi::KeyBlock> causal(unsigned tokens) {
    std::vector<unsigned> tiles;
    for (unsigned key = 0; key < tokens; key += 128) tiles.push_back((tokens - key) / 64);
    return blocks_of(tiles);
}
/// All steps over all multiprocessors.
double ideal(std::span<const abi::KeyBlock> blocks, const PackedProblem& problem) {
    double tiles = 0;
    for (const abi::KeyBlock& block : blocks) tiles += block.tiles;
    return tiles * problem.q_heads / kSms;
}

}  // namespace

TEST_CASE("backward balance: causal 4k leaves its blocks whole, 32 heads of 8") {
    const PackedProblem problem = {.q_heads = 32, .kv_heads = 8, .head_dim = 128};
    const auto blocks = causal(4096);
    BackwardBalance balance(problem, 16 << 20, kSms);
    CHECK(balance.choose(blocks, 24) == 64);
    // The longest block has as many steps as a multiprocessor has in all: cut ones would leave a third of the items at the end.
    CHECK(balance.makespan(blocks, 64) < 1.03 * ideal(blocks, problem));
    CHECK(balance.makespan(blocks, 24) > 1.12 * ideal(blocks, problem));
}

TEST_CASE("backward balance: a block that outlasts all others is cut") {
    const PackedProblem problem = {.q_heads = 32, .kv_heads = 8, .head_dim = 128};
    std::vector<unsigned> tiles(64, 8);
    tiles.insert(tiles.end(), 4, 136);
    const auto blocks = blocks_of(tiles);
    BackwardBalance balance(problem, 35 << 20, kSms);
    CHECK(balance.choose(blocks, 24) <= 48);
    CHECK(balance.makespan(blocks, 136) > 1.5 * balance.makespan(blocks, balance.choose(blocks, 24)));
}

TEST_CASE("backward balance: no choice is worse than the rule, no makespan below what there is to do") {
    std::mt19937 random(5);
    for (int round = 0; round < 200; ++round) {
        const std::int32_t group = 1 << random() % 4, kv_heads = 1 << random() % 4;
        const PackedProblem problem = {.q_heads = group * kv_heads, .kv_heads = kv_heads, .head_dim = 64};
        std::vector<unsigned> tiles(1 + random() % 60);
        for (unsigned& each : tiles) each = random() % 4 == 0 ? random() % 200 : random() % 12;
        const auto blocks = blocks_of(tiles);
        BackwardBalance balance(problem, std::int64_t{1} << (20 + random() % 8), kSms);
        const std::int64_t rule = 1 + random() % 40, chosen = balance.choose(blocks, rule);
        CAPTURE(round);
        const double least = balance.makespan(blocks, chosen);
        CHECK(least <= balance.makespan(blocks, rule));
        CHECK(least >= ideal(blocks, problem));
    }
}
