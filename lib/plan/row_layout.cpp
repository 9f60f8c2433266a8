// SPDX-License-Identifier: Apache-2.0
#include "plan/row_layout.h"

#include <algorithm>

namespace sapwood {
namespace {

std::int32_t greatest_divisor(std::int32_t of, std::int32_t most) {
    while (of % most != 0) --most;
    return most;
}

/// Bundles of as many KV heads as divide all of them, `most` bundles or one KV head's.
std::int32_t section_of(const PackedProblem& problem, std::int32_t bundles, std::int32_t most) {
    return bundles * greatest_divisor(problem.kv_heads, std::clamp(most / bundles, 1, problem.kv_heads));
}

}  // namespace

std::int64_t row_bytes(const PackedProblem& problem) { return 2 * problem.head_dim_v + 6 * problem.head_dim; }

/// The more heads, the fewer blocks at work add to the same tiles of dQ, and wait for each other where order counts. But what they
/// work on, tiles of dQ with their Q and dO, is to stay in L2 until the last one has added. Items are shorter than longest first
/// has them, because short ones are not kept for the end; below 48 steps beginning and end cost too much.
RowLayout lay_out_rows(const PackedProblem& problem, std::int32_t bundles) {
    constexpr std::int64_t kResidentBytes = 24 << 20, kMostSteps = 96;
    const std::int32_t heads = problem.q_heads / problem.kv_heads / bundles;  // of an item
    const std::int64_t tile_bytes = abi::kRowTile * row_bytes(problem);       // of one head
    const bool many = heads <= 2 || tile_bytes * 8 * kMostSteps <= kResidentBytes;
    RowLayout layout;
    layout.bundles = bundles;
    layout.section = section_of(problem, bundles, many ? 8 : 4);
    layout.least_steps = heads <= 2 ? 48 : 64;
    layout.most_steps = std::clamp(kResidentBytes / (tile_bytes * layout.section), layout.least_steps, kMostSteps);
    return layout;
}

std::int64_t RowLayout::longest_part(std::int64_t tiles, const PackedProblem& problem, int multiprocessors) const {
    const std::int64_t heads = problem.q_heads / problem.kv_heads / bundles, steps = tiles * problem.q_heads / multiprocessors;
    return std::max<std::int64_t>(1, std::clamp(steps / 24, least_steps, most_steps) / heads);
}

std::vector<RowLayout> short_layouts(const PackedProblem& problem, std::int32_t bundles_asked, std::int64_t longest) {
    // Of an item's heads one is at work at a time, but short items are soon at the next one: half of the others' rows count.
    constexpr double kOthers = 0.5;
    // What is more than L2 holds costs time: measured on an H100, a ninth of it for 64 MB.
    constexpr double kResidentBytes = 40 << 20, kMostBytes = 80 << 20, kCostOfByte = 0.11 / (24 << 20);
    const std::int32_t group = problem.q_heads / problem.kv_heads;
    std::vector<RowLayout> layouts;
    RowLayout brief = lay_out_rows(problem, std::max(bundles_asked, 1));  // half as long, of twice as many heads
    if (group / brief.bundles > 2) {
        brief.section = section_of(problem, brief.bundles, 8);
        brief.least_steps /= 2;
        brief.most_steps = brief.least_steps * 2;
        layouts.push_back(brief);
    }
    for (std::int32_t bundles = 1; bundles <= group; ++bundles) {
        if (group % bundles != 0 || (bundles_asked != 0 && bundles != bundles_asked)) continue;
        const double head_bytes =
            static_cast<double>(longest * abi::kRowTile * row_bytes(problem)) * (1 + kOthers * (group / bundles - 1));
        for (std::int32_t heads = problem.kv_heads; heads > 0; --heads) {
            const double bytes = head_bytes * heads * bundles;
            if (problem.kv_heads % heads != 0 || bytes > kMostBytes) continue;
            layouts.push_back({.order = BlockOrder::there_and_back,
                               .bundles = bundles,
                               .section = heads * bundles,
                               .slowdown = 1 + kCostOfByte * std::max(0.0, bytes - kResidentBytes)});
            if (bytes <= kResidentBytes) break;
        }
    }
    return layouts;
}

}  // namespace sapwood
