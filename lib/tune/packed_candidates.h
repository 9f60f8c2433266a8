// SPDX-License-Identifier: Apache-2.0
// Candidates for a call over a pack, forward or backward. Such kernels have few tile sizes, so all that can run are measured. They
// are carried as DecodeConfigs, whose first six fields a PackedConfig has: one search, one record and one database for all.
#pragma once

#include "kernel/key.h"
#include "plan/limits.h"
#include "sapwood/packed.h"
#include "tune/candidates.h"

namespace sapwood::tune {

/// The fields that both kinds of configuration have.
DecodeConfig as_decode(const PackedConfig& config);
PackedConfig as_packed(const DecodeConfig& config);

/// One of the two passes over a pack, for one problem.
class PackedPass {
public:
    /// `family`: packed_forward or packed_backward. `problem` is complete.
    PackedPass(Family family, const PackedProblem& problem) : family_(family), problem_(problem) {}

    Family family() const { return family_; }
    const PackedProblem& problem() const { return problem_; }
    /// With as_decode's fields, of a backward pass `split`: into how many items the query heads of a group fall, 0 where the plan
    /// chooses (PackedConfig::heads). A forward pass chooses its heads with the pack, whatever its tiles.
    DecodeConfig as_decode(const PackedConfig& config) const;
    PackedConfig as_packed(const DecodeConfig& config) const;
    /// Empty if it can run.
    std::string why_illegal(const DecodeConfig& config, const Limits& limits) const;
    /// The planner's choice of what `fixed` leaves open.
    DecodeConfig by_default(const DecodeConfig& fixed, const Limits& limits) const;
    std::int64_t shared_bytes(const DecodeConfig& config) const;

    /// What a plan comes to.
    struct Work {
        std::int64_t items = 0;
        double flops = 0;           // of visible pairs
        double flops_in_tiles = 0;  // of all that the tiles hold
        std::uint64_t print = 0;    // the same of plans that give one kernel the same items
    };
    Work work(const Pack& pack, const DecodeConfig& config, const Limits& limits) const;

private:
    std::int32_t group() const { return problem_.q_heads / problem_.kv_heads; }
    Family family_;
    PackedProblem problem_;
};

/// `wanted` as in find_candidates.
CandidateSet find_packed_candidates(const PackedPass& pass, const Pack& pack, const DeviceFacts& device, const TuneOptions& options,
                                    std::span<const DecodeConfig> wanted);

}  // namespace sapwood::tune
