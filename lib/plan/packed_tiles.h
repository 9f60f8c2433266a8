// SPDX-License-Identifier: Apache-2.0
// Tile sizes of the packed forward kernel: which can run, and which is taken when the caller leaves them open.
#pragma once

#include <cstdint>
#include <string>

#include "attention/packed_layout.h"
#include "plan/limits.h"
#include "sapwood/packed.h"

namespace sapwood {

/// Throws kInvalidProblem unless the shapes fit together; returns the problem with its defaults filled in.
PackedProblem complete(const PackedProblem& problem);

/// `asked`, what it leaves open taken from `candidate`.
PackedConfig merged(PackedConfig asked, const PackedConfig& candidate);

abi::PackedShape shape_of(const PackedProblem& problem, const PackedConfig& config);

/// Why so many blocks with `shared` bytes of shared memory each do not fit an SM; empty if they do.
std::string why_no_room(std::int64_t shared, std::int32_t blocks, const Limits& limits);

/// Whether so many query heads can share a block of rows: each has 16 of it or a multiple, and they have the same keys.
bool can_share_block(const PackedProblem& problem, const PackedConfig& config, std::int32_t heads);

/// Why this configuration cannot run on this device, with numbers; empty if it can.
std::string why_illegal(const PackedProblem& problem, const PackedConfig& config, const Limits& limits);

/// The configuration for a problem: fields that `asked` fixes are kept, the others chosen. Throws kUnsupportedDevice with the
/// reason when nothing legal is left.
PackedConfig choose_config(const PackedProblem& problem, const PackedConfig& asked, const Limits& limits);

}  // namespace sapwood
