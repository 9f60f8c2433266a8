// SPDX-License-Identifier: Apache-2.0
// Plans of static trees: a work item is a block of neighbouring query rows with the whole of its prefix, the ancestors of its rows
// gathered, and the rows themselves. Nothing is split, so nothing is merged.
#pragma once

#include <memory>
#include <span>

#include "plan/decode_plan.h"
#include "sapwood/static_tree.h"

namespace sapwood {

/// Throws kInvalidArgument naming the sequence, kInvalidProblem, kUnsupportedDevice.
std::unique_ptr<DecodePlan::Impl> make_static_plan(const DecodeProblem& problem, std::span<const StaticTree> trees,
                                                   std::span<const StaticTreeSequence> sequences, const DecodeConfig& config,
                                                   const Limits& limits);

}  // namespace sapwood
