// SPDX-License-Identifier: Apache-2.0
// Tile sizes of the packed backward kernel: which can run, and which is taken when the caller leaves them open.
#pragma once

#include <cstdint>
#include <string>

#include "plan/limits.h"
#include "sapwood/packed.h"

namespace sapwood {

/// Shared memory of a block of the main kernel. `config` is complete.
std::int64_t backward_shared_bytes(const PackedProblem& problem, const PackedConfig& config);

/// Why this configuration cannot run on this device, with numbers; empty if it can.
std::string why_backward_illegal(const PackedProblem& problem, const PackedConfig& config, const Limits& limits);

/// The configuration for a problem: fields that `asked` fixes are kept, the others chosen. Throws kUnsupportedDevice with the
/// reason when nothing legal is left.
PackedConfig choose_backward_config(const PackedProblem& problem, const PackedConfig& asked, const Limits& limits);

}  // namespace sapwood
