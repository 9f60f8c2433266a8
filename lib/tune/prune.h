// SPDX-License-Identifier: Apache-2.0
// The resource model: what a configuration takes of a multiprocessor, before and after it is compiled, and what rules it out.
#pragma once

#include <string>

#include "sapwood/tune.h"
#include "tune/device_facts.h"

namespace sapwood::tune {

/// Fills in shared memory, threads, registers and blocks an SM, and the status if the device cannot run it. `problem` is complete.
void apply_resource_model(const DecodeProblem& problem, const DeviceFacts& device, TuneCandidate& candidate);

/// The same with the compiler's figures in place of the estimates.
void apply_compiled(const DeviceFacts& device, int registers, int spill_bytes, TuneCandidate& candidate);

/// Blocks of a kernel that a multiprocessor holds. Registers are dealt out to warps in units of 256 on four sub-cores.
int blocks_per_sm(const DeviceFacts& device, int threads, int registers, int shared_bytes);

/// Gives a candidate that is still to be measured the status and reason for which it is not.
void drop(TuneCandidate& candidate, const char* status, std::string reason);

/// Index of the least cost_us among candidates that nothing short of running them rules out: the choice without measuring, as far
/// as is known (before and after compiling). 0 if there is none.
std::size_t least_cost(std::span<const TuneCandidate> candidates);

/// Candidates that spill more than `tolerated` bytes a thread are dropped unless all of `candidates` that are left do.
void drop_spilling(std::span<TuneCandidate> candidates, int tolerated);

}  // namespace sapwood::tune
