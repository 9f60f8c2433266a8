// SPDX-License-Identifier: Apache-2.0
// From a problem to the candidates worth measuring: the SM's list and the caller's, planned, pruned and ranked. Needs no device.
#pragma once

#include <span>
#include <vector>

#include "plan/decode_plan.h"
#include "sapwood/tune.h"
#include "tune/bucket.h"
#include "tune/configs.h"
#include "tune/device_facts.h"

namespace sapwood::tune {

struct CandidateSet {
    ListMatch list{};
    std::vector<TuneCandidate> all;  // the default first, then in the order of preference; those ruled out say why
    double floor_us = 0;
    int tolerated_spill = 0;  // bytes a thread that rule nothing out

    /// Still in the race.
    std::vector<std::size_t> alive() const;
};

/// `problem` is complete. `wanted`: configurations measured whatever their rank (bests of neighbouring buckets and of older
/// records).
CandidateSet find_candidates(const DecodeProblem& problem, const Forest& forest, const ForestOrder& order,
                             const DeviceFacts& device, const TuneOptions& options, std::span<const DecodeConfig> wanted);

}  // namespace sapwood::tune
