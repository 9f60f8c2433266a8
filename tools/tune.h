// SPDX-License-Identifier: Apache-2.0
// What the parts of `sapwood tune` share: jobs, the pipe between the parent and its workers, results.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "common.h"
#include "support/packed_workload.h"
#include "tune/candidates.h"
#include "tune/record.h"

namespace sapwood::tool {

struct TuneArgs {
    std::vector<std::string> workloads;
    std::string trace;
    Selection filter;  // all but its file
    std::string db, against, target = "auto", devices, shard, report, cache, budget, fix, passes = "fwd,bwd";
    bool exhaustive = false, fresh = false, worker = false;
    bool simulate = false;       // a device made of the cost model and noise: to test all but the measuring without a GPU
    std::string simulate_crash;  // a configuration that kills its process there
    int top_k = 32, per_bucket = 6;
    double hang_s = 60;
    JsonLines json;
};

/// A case of a training workload.
struct PackedTuneCase {
    support::PackedSpec spec;
    support::PackedVariant variant;
    Family pass = Family::packed_forward;

    PackedProblem problem() const;  // complete
};

/// One problem to tune: a decode step, or where `packed` is set a pass over that pack.
struct TuneJob {
    support::CaseSpec spec;
    support::Variant variant;
    std::string title;
    DecodeProblem problem;  // complete
    tune::Sizes sizes;
    tune::Bucket bucket;
    bool runs = false;        // without a page table
    std::uint64_t calls = 0;  // of a trace
    std::optional<PackedTuneCase> packed;

    support::DecodeCase build() const;
};

struct JobList {
    std::vector<TuneJob> jobs;                            // the same on every run with the same arguments
    std::size_t same = 0, crowded = 0, other_shards = 0;  // left out: equal sizes, more than --per-bucket, not of this shard
};
JobList tune_jobs(const TuneArgs& args);
std::vector<TuneJob> trace_jobs(const std::string& file);
/// `passes`: of fwd,bwd.
std::vector<TuneJob> packed_jobs(const Selection& selection, const std::string& passes);
/// Options of the library's search that the arguments stand for.
TuneOptions tune_options(const TuneArgs& args);

/// What came of a job, for table and report.
struct TuneOutcome {
    TuneReport report;
    tune::Bucket bucket;
    std::string title, note;
    DecodeConfig chosen;                   // of the database, after this run
    std::optional<DecodeConfig> compared;  // what --against (or the shipped database) chooses
    std::string compared_match;
};

/// A worker: reads jobs from standard input, writes results to standard output until there are no more.
int tune_worker(const TuneArgs& args);
/// Runs workers, keeps them alive, and writes the database.
int tune_on_devices(const TuneArgs& args, const std::vector<int>& devices);
/// Prunes, compiles and ranks for an SM that is not here.
int tune_offline(const TuneArgs& args);

/// Rows of the result, and the summary below them.
void print_outcomes(const TuneArgs& args, const std::vector<TuneOutcome>& outcomes, double seconds);
/// One HTML file that needs nothing else.
void write_report(const std::string& path, const TuneArgs& args, const std::string& device,
                  const std::vector<TuneOutcome>& outcomes);

}  // namespace sapwood::tool
