// SPDX-License-Identifier: Apache-2.0
// Successive halving over candidates that take turns, and the decision: only beyond noise, ties to the earlier configuration.
#pragma once

#include <span>
#include <vector>

#include "sapwood/tune.h"
#include "tune/candidates.h"
#include "tune/measure.h"

namespace sapwood::tune {

struct Statistics {
    double median = 0, mad = 0;
};
Statistics statistics_of(std::vector<double> samples);

/// Index of the configuration to use, candidates in tie order with the default first: of those that the fastest does not beat
/// beyond noise, the earliest. Only those with as many samples as the most sampled count. -1 if none was measured.
int choose_best(std::span<const TuneCandidate> candidates, const TunePolicy& policy);

/// Whether `known` leaves anything of `set` to measure: a candidate that is alive and has no lasting result.
bool needs_measuring(const CandidateSet& set, std::span<const TuneCandidate> known);

/// Measures what is alive in `set` and returns the report. `known`: candidates as an earlier run recorded them; they are not
/// measured again, but for the default and the recorded best that new ones have to be compared with.
TuneReport search(CandidateSet set, Measurer& measurer, const DeviceFacts& device, const TuneOptions& options,
                  std::span<const TuneCandidate> known = {});

}  // namespace sapwood::tune
