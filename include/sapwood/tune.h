// SPDX-License-Identifier: Apache-2.0
// Autotuning as a call: candidates from the SM's list, pruned, ranked, measured on the caller's tensors, validated, decided.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "sapwood/decode.h"
#include "sapwood/engine.h"

namespace sapwood {

/// One configuration on its way through pruning, ranking, compiling and measuring.
struct TuneCandidate {
    DecodeConfig config;
    /// "ok", or what ended its way: "pruned:shape", "pruned:smem", "pruned:registers", "pruned:occupancy", "pruned:same-plan",
    /// "pruned:caller", "pruned:rank", "pruned:spill", "build-failed", "wrong", "crash", "unmeasured" (time was up).
    std::string status = "ok";
    std::string reason;  ///< with numbers

    int shared_bytes = 0, threads = 0;
    int registers = 0;  ///< an estimate until `compiled`, then the compiler's
    int registers_available = 0;
    int spill_bytes = 0;
    int blocks_per_sm = 0;  ///< by shared memory, registers and threads
    bool compiled = false;

    std::int64_t items = 0, partial_rows = 0;
    std::vector<DecodeConfig> same;  ///< of the same kernel, and planning the same work items: "pruned:same-plan"
    double model_us = 0;             ///< the planner's expectation with this configuration
    double arithmetic_us = 0;        ///< of the busiest resource but memory
    double cost_us = 0;              ///< what candidates are ranked by

    double median_us = 0, mad_us = 0;  ///< of one call, as TunePolicy measures it
    int samples = 0;                   ///< 0: not measured
    bool measured() const noexcept { return samples > 0 && status == "ok"; }
};

/// How candidates are measured and compared: named and versioned, and part of what a record is valid for.
struct TunePolicy {
    const char* name = "graph-coldL2/1";
    double least_graph_us = 1000;  ///< calls in one CUDA graph: as many as take this long
    double cold_factor = 2;        ///< argument sets take turns until their K and V are this many times the L2
    int rounds[3] = {3, 10, 30};   ///< samples of each candidate that is left; candidates take turns sample by sample
    double keep[2] = {1.3, 1.1};   ///< after rounds one and two: those within this factor of the best
    int finalists = 6;             ///< in the last round
    double early_stop = 2.0;       ///< a first sample this many times the best first sample is the last
    double least_gain = 0.01;      ///< better means by more than this share of the time,
    double noise_factor = 2;       ///< and by more than so many median absolute deviations; else the earlier configuration is kept
};

struct TuneOptions {
    std::vector<DecodeConfig> add;                                  ///< candidates beside the SM's list; 0 = chosen
    bool only_added = false;                                        ///< leave the list out
    std::function<bool(const DecodeConfig&)> restrict_to;           ///< keeps the candidates for which it is true
    DecodeConfig fix;                                               ///< fields that are not 0 are fixed in every candidate
    std::function<std::string(const TuneCandidate&)> prune;         ///< a reason drops the candidate; runs after the resource model
    std::function<double(const TuneCandidate&)> cost;               ///< microseconds, in place of the cost model
    std::function<void(const TuneCandidate&, int round)> progress;  ///< told before each candidate's stage
    int top_k = 32;           ///< measured by cost, besides the default and the neighbours' best
    bool exhaustive = false;  ///< measure all that can run
    double seconds = 0;       ///< give up measuring after so long and decide on what there is; 0 = no limit
    TunePolicy policy;
};

struct TuneReport {
    std::string bucket;                     ///< "decode/b1/bf16/d128/…"
    std::string list;                       ///< which table of candidates, and how it was matched: "sm_90 (exact)"
    std::vector<TuneCandidate> candidates;  ///< the default first, then in the order in which ties are broken
    DecodeConfig default_config, best, model_choice;
    double floor_us = 0;   ///< bytes that every kernel must move, at 3.0 TB/s
    bool complete = true;  ///< false: time was up, or the device failed
    std::string failure;   ///< why the device can measure no more in this process; empty if it can
    /// The candidate of this configuration, or the one that stands for it (TuneCandidate::same); null if there is none.
    const TuneCandidate* find(const DecodeConfig& config) const;
};

/// Tunes one problem on the engine's GPU. `sets`: tensors of the same shapes, different memory, so that K and V can be cold: one is
/// enough if they exceed the L2 by far. The outputs are overwritten. Nothing is recorded; see `sapwood tune` for a database.
/// Throws kUnsupportedDevice without a GPU, kInvalidArgument, and what Engine::plan_decode throws.
TuneReport tune_decode(Engine& engine, const DecodeProblem& problem, const Forest& forest, std::span<const DecodeTensors> sets,
                       const TuneOptions& options = {});

}  // namespace sapwood
