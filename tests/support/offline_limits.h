// SPDX-License-Identifier: Apache-2.0
// Limits of an SM's usual board, for planning without it.
#pragma once

#include <string>

#include "cuda/sm_table.h"
#include "engine/target.h"

namespace sapwood::support {

inline Limits offline_limits(const std::string& target) { return limits_of(cuda::offline_device(target), target); }

}  // namespace sapwood::support
