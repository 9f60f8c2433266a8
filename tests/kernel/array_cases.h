// SPDX-License-Identifier: Apache-2.0
// Packs whose visibility is start_q and end_k: arrays of trees, and arrays of no tree at all.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "kernel/packed_cases.h"

namespace sapwood::test {

/// The arrays of depth-first trees, and the sequences that their roots begin.
struct DfsArrays {
    std::vector<std::int32_t> cu, start_q, end_k;
};
/// Nodes are counted from `first` in every tree; `global`: on from tree to tree.
DfsArrays arrays_of(std::span<const Segment> segments, std::int32_t first = 0, bool global = false);

/// Trees of so many tokens, some of whose segments are empty.
std::vector<Segment> random_trees(std::uint32_t seed, std::int64_t tokens, std::int64_t longest);

/// A case of trees in this form: arrays_of(which.segments), moved into the case.
PackedCase as_arrays(PackedCase which, std::int32_t first = 0, bool global = false);

/// `which` with arrays of any values from `low` to `high`, in stretches of up to `longest` tokens: no trees.
PackedCase with_any_arrays(PackedCase which, std::uint32_t seed, std::int32_t low, std::int32_t high, std::int32_t longest);

const std::vector<PackedCase>& array_cases();

}  // namespace sapwood::test
