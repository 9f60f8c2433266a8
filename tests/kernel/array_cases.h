// SPDX-License-Identifier: Apache-2.0
// Packs whose visibility is start_q and end_k: arrays of trees, and arrays of no tree at all.
#pragma once

#include <cstdint>
#include <vector>

#include "kernel/packed_cases.h"
#include "support/dfs_arrays.h"

namespace sapwood::test {

/// Trees of so many tokens, some of whose segments are empty.
std::vector<Segment> random_trees(std::uint32_t seed, std::int64_t tokens, std::int64_t longest);

/// A case of trees in this form: support::arrays_of(which.segments), moved into the case.
PackedCase as_arrays(PackedCase which, std::int32_t first = 0, bool global = false);

/// `which` with arrays of any values from `low` to `high`, in stretches of up to `longest` tokens: no trees.
PackedCase with_any_arrays(PackedCase which, std::uint32_t seed, std::int32_t low, std::int32_t high, std::int32_t longest);

const std::vector<PackedCase>& array_cases();

}  // namespace sapwood::test
