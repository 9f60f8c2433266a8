// SPDX-License-Identifier: Apache-2.0
// Problems of a recorded trace (SAPWOOD_TRACE) as jobs, each with a forest like the one that was served; and those of a training
// workload.
#include "engine/trace.h"
#include "engine/traced_pack.h"
#include "packed_case.h"
#include "plan/order.h"
#include "plan/packed_tiles.h"
#include "plan/tiles.h"
#include "tune.h"

namespace sapwood::tool {
namespace {

TuneJob job_of(const TraceProblem& record, std::size_t number) {
    TuneJob job;
    job.problem = complete(record.problem);
    job.variant = {.dtype = job.problem.dtype,
                   .head_dim = job.problem.head_dim,
                   .q_heads = job.problem.q_heads,
                   .kv_heads = job.problem.kv_heads,
                   .page_size = std::max(1, job.problem.page_size),
                   .layout = job.problem.page_size == 0 ? support::Layout::contiguous : support::Layout::random,
                   .kv_dtype = job.problem.kv_dtype};
    job.spec.name = text("trace:%zu", number);
    job.spec.seed = number;
    std::vector<std::int32_t> place;
    for (const TraceNode& node : record.tree) {
        place.push_back(static_cast<std::int32_t>(job.spec.nodes.size()));
        const std::int32_t parent = node.parent < 0 ? -1 : place[static_cast<std::size_t>(node.parent)];
        for (std::int32_t copy = 0; copy < node.copies; ++copy) job.spec.nodes.push_back({parent, node.tokens, node.requests});
    }
    job.runs = job.problem.page_size == 0;
    job.calls = record.launched + record.planned;
    job.title = job.spec.name + " " + job.variant.to_string();
    job.sizes = tune::sizes_of(job.problem, order_of(job.build().forest));
    job.bucket = tune::bucket_of(job.problem, job.sizes);
    return job;
}

}  // namespace

std::vector<TuneJob> trace_jobs(const std::string& file) {
    std::vector<TuneJob> jobs;
    for (const TraceProblem& record : read_trace(file)) jobs.push_back(job_of(record, jobs.size() + 1));
    // What was called most comes first: if time runs out, it was spent where it counts.
    std::stable_sort(jobs.begin(), jobs.end(), [](const TuneJob& a, const TuneJob& b) { return a.calls > b.calls; });
    if (const std::size_t packs = read_traced_packs(file).size(); packs > 0)
        std::fprintf(stderr,
                     "tune: %s holds the sizes of %zu calls over packs, not the packs; tune those from a training workload\n",
                     file.c_str(), packs);
    return jobs;
}

PackedProblem PackedTuneCase::problem() const { return complete(variant.problem()); }

std::vector<TuneJob> packed_jobs(const Selection& selection, const std::string& passes) {
    std::vector<TuneJob> jobs;
    for (const PackedItem& item : packed_items(selection)) {
        for (const auto& [name, pass] : {std::pair("fwd", Family::packed_forward), std::pair("bwd", Family::packed_backward)}) {
            if (!names(passes, name)) continue;
            TuneJob job;
            job.packed = {item.spec, item.variant, pass};
            const PackedProblem problem = job.packed->problem();
            job.title = item.title() + " " + name;
            job.sizes = tune::sizes_of(problem, Pack::from_segments(item.spec.segments));
            job.bucket = tune::bucket_of(problem, job.sizes, pass);
            jobs.push_back(std::move(job));
        }
    }
    return jobs;
}

}  // namespace sapwood::tool
