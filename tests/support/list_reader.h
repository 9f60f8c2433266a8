// SPDX-License-Identifier: Apache-2.0
// Reads a plan's work list back, as the kernel does, into what every request sees.
#pragma once

#include <string>

#include "plan/decode_plan.h"
#include "sapwood/forest.h"

namespace sapwood::support {

/// Empty if the list gives every request of the forest exactly its path, once, and nothing else; else the first thing wrong with
/// it.
std::string fault_of(const DecodePlan::Impl& plan, const Forest& forest);

/// Empty if every tile's words (abi::Chunk::tile_word) say of its chunks what these say themselves; else the first that do not.
/// fault_of looks at them too.
std::string word_fault_of(const DecodePlan::Impl& plan);

}  // namespace sapwood::support
