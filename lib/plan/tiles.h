// SPDX-License-Identifier: Apache-2.0
// Tile sizes of the decode kernel: which can run, and which is taken when the caller leaves them open.
#pragma once

#include <optional>
#include <string>

#include "attention/decode_layout.h"
#include "plan/limits.h"
#include "sapwood/decode.h"

namespace sapwood {

/// Throws kInvalidProblem unless the shapes fit together; returns the problem with its defaults filled in.
DecodeProblem complete(const DecodeProblem& problem);

inline int group_of(const DecodeProblem& problem) { return problem.q_heads / problem.kv_heads; }

abi::DecodeShape shape_of(const DecodeProblem& problem, const DecodeConfig& config);

/// Registers of a compute thread: what the kernel is expected to need, and what is left to it with this many threads on an SM.
struct RegisterEstimate {
    int needed = 0, available = 0;
};
RegisterEstimate register_estimate(const DecodeProblem& problem, const DecodeConfig& config, const Limits& limits);

/// Why this configuration cannot run on this device, with numbers; empty if it can.
std::string why_illegal(const DecodeProblem& problem, const DecodeConfig& config, const Limits& limits);

/// The configuration for a problem: fields that `asked` fixes are kept, the others chosen. Throws kUnsupportedDevice with the
/// reason when nothing legal is left, kInvalidProblem when the fixed fields are illegal by themselves.
DecodeConfig choose_config(const DecodeProblem& problem, const DecodeConfig& asked, const Limits& limits);

/// The same; nothing, and why, where nothing legal is left. Mainloop::choose is Mainloop::mma here: what suits a forest better is
/// the planner's affair.
std::optional<DecodeConfig> find_config(const DecodeProblem& problem, const DecodeConfig& asked, const Limits& limits,
                                        std::string* reason = nullptr);

}  // namespace sapwood
