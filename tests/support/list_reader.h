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

}  // namespace sapwood::support
