// SPDX-License-Identifier: Apache-2.0
#include "plan/backward_balance.h"

#include <algorithm>

#include "plan/backward_list.h"
#include "plan/first_free.h"
#include "plan/packed_plan.h"

namespace sapwood {
double BackwardBalance::makespan(std::span<const abi::KeyBlock> blocks, std::int64_t longest) {
    // Of an item beside its steps, measured on an H100: K and V, an empty pipeline, dK and dV; of a part dK and dV as additions.
    constexpr double kWhole = 2, kPart = 4;
    std::int64_t most = 0, items = 0;
    for (const abi::KeyBlock& block : blocks) most = std::max<std::int64_t>(most, block.tiles);
    whole_.assign(static_cast<std::size_t>(most) + 1, 0);
    parts_.assign(static_cast<std::size_t>(most) + 1, 0);
    for (const abi::KeyBlock& block : blocks) {
        const std::int64_t count = parts_of(block, longest), over = block.tiles % count;
        std::vector<std::int32_t>& lengths = count > 1 ? parts_ : whole_;
        lengths[static_cast<std::size_t>(block.tiles / count)] += static_cast<std::int32_t>(count - over);
        if (over > 0) lengths[static_cast<std::size_t>(block.tiles / count) + 1] += static_cast<std::int32_t>(over);
        items += count;
    }
    const int section = choose_section(problem_.kv_heads, head_bytes_, items, multiprocessors_ * 3 / 2);
    const double group = problem_.q_heads / problem_.kv_heads;
    busy_.assign(static_cast<std::size_t>(multiprocessors_), 0);
    for (int head = 0; head < problem_.kv_heads; head += section) {
        for (std::int64_t tiles = most; tiles >= 0; --tiles) {
            const double steps = static_cast<double>(tiles) * group;
            for (std::int64_t i = static_cast<std::int64_t>(parts_[static_cast<std::size_t>(tiles)]) * section; i > 0; --i)
                occupy_first(busy_, busy_.front() + (steps + kPart));
            for (std::int64_t i = static_cast<std::int64_t>(whole_[static_cast<std::size_t>(tiles)]) * section; i > 0; --i)
                occupy_first(busy_, busy_.front() + (steps + kWhole));
        }
    }
    return *std::max_element(busy_.begin(), busy_.end());
}

std::int64_t BackwardBalance::choose(std::span<const abi::KeyBlock> blocks, std::int64_t rule) {
    // Many items even out whatever their length, and trying costs as long as they are many.
    constexpr std::int64_t kMostItems = 1200;
    constexpr double kCertain = 0.985;
    std::int64_t most = 0, items = 0;
    for (const abi::KeyBlock& block : blocks) {
        most = std::max<std::int64_t>(most, block.tiles);
        if (block.tiles > 0) items += parts_of(block, rule);
    }
    if (most <= rule || items * problem_.kv_heads > kMostItems) return rule;
    std::int64_t best = rule;
    double least = kCertain * makespan(blocks, rule);
    for (const std::int64_t longest : {rule * 3 / 2, rule * 2, rule * 3, most}) {
        if (longest > most) continue;
        const double found = makespan(blocks, longest);
        if (found < least) least = found, best = longest;
    }
    return best;
}

}  // namespace sapwood
