// SPDX-License-Identifier: Apache-2.0
// Candidates for a call over a pack. A packed kernel has few tile sizes, so all that can run are measured. They are carried as
// DecodeConfigs, whose first six fields a PackedConfig has: one search, one record and one database for both.
#pragma once

#include "plan/limits.h"
#include "sapwood/packed.h"
#include "tune/candidates.h"

namespace sapwood::tune {

DecodeConfig as_decode(const PackedConfig& config);
PackedConfig as_packed(const DecodeConfig& config);  // split and rows are a decode plan's

/// `problem` is complete. `wanted` as in find_candidates.
CandidateSet find_packed_candidates(const PackedProblem& problem, const Pack& pack, const DeviceFacts& device,
                                    const TuneOptions& options, std::span<const DecodeConfig> wanted);

}  // namespace sapwood::tune
