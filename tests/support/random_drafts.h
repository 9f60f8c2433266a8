// SPDX-License-Identifier: Apache-2.0
// Draft trees and masks for property tests.
#pragma once

#include <vector>

#include "sapwood/draft.h"
#include "support/random_forest.h"

namespace sapwood::support {

/// Chains, stars, anything between; several roots; parents before their children, or in any order.
inline std::vector<std::int32_t> random_parents(Dice& dice, std::int32_t count) {
    std::vector<std::int32_t> parents(static_cast<std::size_t>(count)), name(parents.size());
    const std::int32_t habit = dice.below(4);
    for (std::int32_t i = 0; i < count; ++i) {
        name[static_cast<std::size_t>(i)] = i;
        if (habit == 3) std::swap(name[static_cast<std::size_t>(i)], name[static_cast<std::size_t>(dice.below(i + 1))]);
    }
    for (std::int32_t i = 0; i < count; ++i) {
        const std::int32_t parent = i == 0 || dice.below(16) == 0 ? -1 : habit == 0 ? i - 1 : habit == 1 ? 0 : dice.below(i);
        parents[static_cast<std::size_t>(name[static_cast<std::size_t>(i)])] =
            parent < 0 ? -1 : name[static_cast<std::size_t>(parent)];
    }
    return parents;
}

/// Bits that follow no tree, whole rows of zeros and ones among them.
inline DraftMask random_mask(Dice& dice, std::int32_t rows, std::int32_t columns) {
    std::vector<std::uint8_t> dense(static_cast<std::size_t>(rows) * static_cast<std::size_t>(columns));
    for (std::int32_t r = 0; r < rows; ++r) {
        const std::int32_t habit = dice.below(6), density = dice.between(1, 9);
        for (std::int32_t t = 0; t < columns; ++t)
            dense[static_cast<std::size_t>(r) * static_cast<std::size_t>(columns) + static_cast<std::size_t>(t)] =
                habit == 0   ? 0
                : habit == 1 ? 1
                             : dice.below(10) < density;
    }
    return DraftMask::from_dense(dense.data(), rows, columns, 0, dice.below(4) == 0);
}

inline DraftMask random_draft(Dice& dice, std::int32_t longest) {
    const std::int32_t count = dice.between(1, longest);
    if (dice.below(2) == 0) return DraftMask::from_parents(random_parents(dice, count));
    return random_mask(dice, dice.between(1, longest), count);
}

}  // namespace sapwood::support
