// SPDX-License-Identifier: Apache-2.0
// A kernel key back from its canonical text, and what of a call it fixes: for lists of keys that travel between machines.
#pragma once

#include <string>
#include <string_view>

#include "kernel/key.h"

namespace sapwood {

/// The key whose to_string() is `text`. Throws kInvalidArgument for any other text.
KernelKey parse_key(std::string_view text);

/// A decode problem and tile sizes that have this key: one KV head, the group's query heads.
DecodeProblem problem_of(const KernelKey& key);
DecodeConfig config_of(const KernelKey& key);
/// `config` with the tiles of this kernel; what is the planner's alone (split) stays.
DecodeConfig with_tiles(DecodeConfig config, const KernelKey& key);

/// The same kernel but for tile sizes: either serves a plan that is made for its tiles.
bool same_problem(const KernelKey& a, const KernelKey& b) noexcept;

}  // namespace sapwood
