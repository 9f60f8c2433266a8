// SPDX-License-Identifier: Apache-2.0
// Problems of a recorded trace (SAPWOOD_TRACE) as jobs: each with a forest like the one that was served.
#include <fstream>

#include "plan/order.h"
#include "plan/tiles.h"
#include "tune.h"

namespace sapwood::tool {
namespace {

/// One line of the trace: shapes, and a tree as [parent, tokens, requests, copies] with childless siblings counted.
TuneJob job_of(const nlohmann::json& line, std::size_t number) {
    const auto& problem = line.at("problem");
    TuneJob job;
    const std::string dtype = problem.at("dtype");
    if (dtype != "fp16" && dtype != "bf16") throw Stop{kUsage, "dtype \"" + dtype + "\" is neither fp16 nor bf16"};
    job.problem = complete({.q_heads = problem.at("q_heads"),
                            .kv_heads = problem.at("kv_heads"),
                            .head_dim = problem.at("head_dim"),
                            .head_dim_v = problem.at("head_dim_v"),
                            .dtype = dtype == "fp16" ? DType::fp16 : DType::bf16,
                            .page_size = problem.at("page_size"),
                            .scale = problem.at("scale"),
                            .softcap = problem.at("softcap")});
    job.variant = {.dtype = job.problem.dtype,
                   .head_dim = job.problem.head_dim,
                   .q_heads = job.problem.q_heads,
                   .kv_heads = job.problem.kv_heads,
                   .page_size = std::max(1, job.problem.page_size),
                   .layout = job.problem.page_size == 0 ? support::Layout::contiguous : support::Layout::random};
    job.spec.name = text("trace:%zu", number);
    job.spec.seed = number;
    std::vector<std::int32_t> place;
    for (const auto& entry : line.at("tree")) {
        const std::int32_t parent = entry.at(0), copies = entry.at(3);
        if (parent >= static_cast<std::int32_t>(place.size())) throw Stop{kUsage, "a node of its tree comes before its parent"};
        place.push_back(static_cast<std::int32_t>(job.spec.nodes.size()));
        for (std::int32_t copy = 0; copy < copies; ++copy)
            job.spec.nodes.push_back({parent < 0 ? -1 : place[static_cast<std::size_t>(parent)], entry.at(1), entry.at(2)});
    }
    job.runs = job.problem.page_size == 0;
    job.calls = line.at("launched").get<std::uint64_t>() + line.at("planned").get<std::uint64_t>();
    job.title = job.spec.name + " " + job.variant.to_string();
    job.sizes = tune::sizes_of(job.problem, order_of(job.build().forest));
    job.bucket = tune::bucket_of(job.problem, job.sizes);
    return job;
}

}  // namespace

std::vector<TuneJob> trace_jobs(const std::string& file) {
    std::ifstream in(file);
    if (!in) throw Stop{kUsage, "cannot read the trace " + file};
    std::vector<TuneJob> jobs;
    std::size_t number = 0;
    for (std::string line; std::getline(in, line);) {
        ++number;
        try {
            const auto parsed = nlohmann::json::parse(line);
            if (number == 1) {
                if (parsed.at("sapwood_trace") != 1)
                    throw Stop{kUsage, "schema " + parsed.at("sapwood_trace").dump() + "; this reads 1"};
                continue;
            }
            jobs.push_back(job_of(parsed, number));
        } catch (const Stop& stop) {
            throw Stop{kUsage, "trace " + file + ", line " + std::to_string(number) + ": " + stop.text};
        } catch (const std::exception& error) {
            throw Stop{kUsage, "trace " + file + ", line " + std::to_string(number) + ": " + error.what()};
        }
    }
    // What was called most comes first: if time runs out, it was spent where it counts.
    std::stable_sort(jobs.begin(), jobs.end(), [](const TuneJob& a, const TuneJob& b) { return a.calls > b.calls; });
    return jobs;
}

}  // namespace sapwood::tool
