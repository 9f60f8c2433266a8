// SPDX-License-Identifier: Apache-2.0
// The engine's side of tuning: which configuration a plan gets, and where that came from.
#pragma once

#include <atomic>
#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "engine/target.h"
#include "plan/backward_plan.h"
#include "plan/decode_plan.h"
#include "plan/packed_plan.h"
#include "sapwood/engine.h"
#include "tune/database.h"
#include "tune/device_facts.h"
#include "tune/packed_candidates.h"

namespace sapwood {

/// Of the device that is here, or of the usual board of the SM.
tune::DeviceFacts facts_of(const TargetSetup& setup);
const TargetSetup& setup_of(Engine& engine);  // in engine.cpp

class Tuning {
public:
    /// Reads the database, if there is one: EngineOptions::tune and ::tune_dir, else SAPWOOD_TUNE and SAPWOOD_TUNE_DIR, else what
    /// is embedded and what lies below `cache_root`. Throws kInvalidArgument for a mode that is none.
    /// `attachments`: of bundles, by name; records among them come after the user's and before the embedded ones.
    Tuning(const EngineOptions& options, const TargetSetup& setup, const std::filesystem::path& cache_root,
           const std::map<std::string, std::vector<std::byte>>& attachments);

    /// make_decode_plan with the fields that `config` leaves open taken from the database, where it knows the bucket.
    std::unique_ptr<DecodePlan::Impl> plan(const DecodeProblem& problem, const Forest& forest, const DecodeConfig& config,
                                           const DecodeLimits& room, const Limits& limits);
    /// The same for make_packed_plan.
    std::unique_ptr<PackedPlan::Impl> plan(const PackedProblem& problem, const Pack& pack, const PackedConfig& config,
                                           const Limits& limits);
    /// The same for make_backward_plan. A deterministic plan takes the kernel of a record, but walks whole groups.
    std::unique_ptr<PackedBackwardPlan::Impl> plan_backward(const PackedProblem& problem, const Pack& pack,
                                                            const PackedBackwardOptions& options, const Limits& limits);
    /// What these take for a pack of these sizes; `config` as it is where nothing is known, its open fields the planner's affair.
    PackedConfig choose(const tune::PackedPass& pass, const tune::Sizes& sizes, const PackedConfig& config, TuneMatch& match);
    void count_into(EngineStats& stats) const;
    std::string describe() const;  // for `sapwood doctor`: mode, records, digest

private:
    TuneMatch count(const tune::Lookup& lookup);
    DecodeConfig choose(const DecodeProblem& problem, const ForestOrder& order, const DecodeConfig& config, const Limits& limits,
                        TuneMatch& match);

    std::string mode_;
    std::filesystem::path directory_;
    std::unique_ptr<const tune::Database> database_;  // null: off
    std::atomic<std::uint64_t> exact_{0}, near_{0}, other_gpu_{0}, fallback_{0}, rejected_{0};
};

}  // namespace sapwood
