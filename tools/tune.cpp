// SPDX-License-Identifier: Apache-2.0
// sapwood tune: workload files in, tuning database out.
#include "tune.h"

#include <charconv>
#include <map>
#include <set>

#include "cuda/device.h"
#include "plan/decode_plan.h"
#include "plan/tiles.h"
#include "tune/config_fields.h"

namespace sapwood::tool {
namespace {

/// "3/16": third of sixteen.
std::pair<int, int> parse_shard(const std::string& given) {
    int index = 0, count = 0;
    const char* end = given.data() + given.size();
    const auto first = std::from_chars(given.data(), end, index);
    if (first.ec == std::errc{} && first.ptr != end && *first.ptr == '/') {
        const auto second = std::from_chars(first.ptr + 1, end, count);
        if (second.ec == std::errc{} && second.ptr == end && index >= 1 && index <= count) return {index, count};
    }
    throw Stop{kUsage, "--shard " + given + ": write i/n with i from 1 to n, such as 3/16"};
}

/// By the digits of the record's name: every bucket is in one shard, whatever else is tuned beside it.
int shard_of(const tune::Bucket& bucket, int count) {
    return static_cast<int>(std::stoull(tune::key24(bucket).substr(0, 12), nullptr, 16) % static_cast<unsigned long long>(count)) +
           1;
}

std::vector<int> parse_devices(const std::string& given) {
    std::vector<int> devices;
    for (std::size_t at = 0; at < given.size();) {
        const std::size_t comma = std::min(given.find(',', at), given.size());
        int device = -1;
        const auto parsed = std::from_chars(given.data() + at, given.data() + comma, device);
        if (parsed.ec != std::errc{} || parsed.ptr != given.data() + comma || device < 0)
            throw Stop{kUsage, "--devices " + given + ": write numbers with commas, such as 0,1"};
        devices.push_back(device);
        at = comma + 1;
    }
    return devices;
}

int tune_command(TuneArgs& args) {
    if (args.workloads.empty() && args.trace.empty()) throw Stop{kUsage, "tune needs --workloads FILE… or --trace FILE"};
    if (args.worker) return tune_worker(args);
    std::vector<int> devices = parse_devices(args.devices);
    if (args.simulate) {
        if (args.db.empty()) throw Stop{kUsage, "--simulate writes a database: --db DIR"};
        return tune_on_devices(args, devices.empty() ? std::vector<int>{0} : devices);
    }
    const bool gpu_target = args.target == "auto" || args.target.starts_with("cuda");
    if (gpu_target && cuda::device_count() > 0) {
        if (devices.empty()) devices = {args.target.starts_with("cuda:") ? std::atoi(args.target.c_str() + 5) : 0};
        if (args.db.empty()) throw Stop{kUsage, "tune measures and needs a place for the result: --db DIR"};
        return tune_on_devices(args, devices);
    }
    if (gpu_target) {
        if (args.target != "auto" || !devices.empty()) throw Stop{kNotPossible, "tune on a GPU: " + cuda::driver_problem()};
        args.target = "sm_90a";
        std::fprintf(stderr, "tune: no GPU here (%s): pruning, compiling and ranking for %s; --target names another SM\n",
                     cuda::driver_problem().c_str(), args.target.c_str());
    }
    return tune_offline(args);
}

}  // namespace

TuneOptions tune_options(const TuneArgs& args) {
    TuneOptions options;
    options.top_k = args.top_k;
    options.exhaustive = args.exhaustive;
    options.fix = parse_config(args.fix);
    return options;
}

support::DecodeCase TuneJob::build() const {
    support::DecodeCase built = support::build_case(spec, variant, {.runs_without_pages = runs});
    built.head_dim_v = problem.head_dim_v;
    return built;
}

JobList tune_jobs(const TuneArgs& args) {
    JobList list;
    std::pair<int, int> shard = {1, 1};
    if (!args.shard.empty()) shard = parse_shard(args.shard);
    std::set<std::pair<tune::Bucket, tune::Sizes>> seen;
    std::map<tune::Bucket, int> in_bucket;
    const auto take = [&](TuneJob job) {
        if (!seen.emplace(job.bucket, job.sizes).second) {
            ++list.same;
        } else if (shard_of(job.bucket, shard.second) != shard.first) {
            ++list.other_shards;
        } else if (++in_bucket[job.bucket] > args.per_bucket) {
            ++list.crowded;
        } else {
            list.jobs.push_back(std::move(job));
        }
    };
    for (const std::string& file : args.workloads) {
        Selection selection = args.filter;
        selection.file = file;
        if (support::is_packed_workload(file)) {
            for (TuneJob& job : packed_jobs(selection, args.passes)) take(std::move(job));
            continue;
        }
        std::string built_name;
        ForestOrder order;
        for (auto& [spec, variant] : selection.items()) {
            if (spec.name != built_name) {
                // Sizes do not depend on where pages lie: built without a table, which costs most of the time.
                support::Variant bare = variant;
                bare.page_size = 1, bare.layout = support::Layout::contiguous;
                order = order_of(support::build_case(spec, bare, {.runs_without_pages = true}).forest);
                built_name = spec.name;
            }
            TuneJob job = {.spec = spec, .variant = variant, .title = spec.name + " " + variant.to_string()};
            const bool runs = args.filter.runs && variant.layout == support::Layout::contiguous && variant.page_size == 1;
            // Drafts ask for a kernel with masks.
            job.problem = complete({.q_heads = variant.q_heads,
                                    .kv_heads = variant.kv_heads,
                                    .head_dim = variant.head_dim,
                                    .head_dim_v = spec.head_dim_v,
                                    .dtype = variant.dtype,
                                    .kv_dtype = variant.kv_dtype,
                                    .page_size = runs ? 0 : variant.page_size,
                                    .scale = spec.scale,
                                    .softcap = spec.softcap,
                                    .mask = spec.mask},
                                   order);
            job.runs = runs;
            job.sizes = tune::sizes_of(job.problem, order);
            job.bucket = tune::bucket_of(job.problem, job.sizes);
            take(std::move(job));
        }
    }
    if (!args.trace.empty())
        for (TuneJob& job : trace_jobs(args.trace)) take(std::move(job));
    return list;
}

void add_tune(CLI::App& app, Action& action) {
    auto args = std::make_shared<TuneArgs>();
    CLI::App* sub =
        app.add_subcommand("tune", "search configurations for workloads: measure on GPUs, or prune, compile and rank without one");
    sub->add_option("--workloads", args->workloads, "workload files (JSON)")->check(CLI::ExistingFile);
    sub->add_option("--trace", args->trace, "recorded trace (SAPWOOD_TRACE)")->check(CLI::ExistingFile);
    sub->add_option("--db", args->db, "tuning database to write; what it holds already is not measured again");
    sub->add_option("--against", args->against, "database whose choices are compared (default: the shipped one)");
    sub->add_option("--target", args->target, "auto, cuda, cuda:N, or an SM such as sm_90a without one")->capture_default_str();
    sub->add_option("--devices", args->devices, "GPUs to tune on at the same time, such as 0,1");
    sub->add_option("--budget", args->budget, "stop measuring after this time, such as 4m");
    sub->add_option("--shard", args->shard, "only part i of n of the buckets, as i/n: tune them on many machines, then merge");
    sub->add_flag("--exhaustive", args->exhaustive,
                  "measure every configuration that can run, and compare the choices with the best");
    sub->add_flag("--fresh", args->fresh, "measure again what the database holds");
    sub->add_option("--top", args->top_k, "candidates measured by rank of the cost model")->capture_default_str();
    sub->add_option("--per-bucket", args->per_bucket, "problems measured of one bucket of sizes")->capture_default_str();
    sub->add_option("--config", args->fix, "fix tile sizes, as warps=4,block_kv=64");
    sub->add_option("--report", args->report, "write one HTML file with plots");
    sub->add_option("--hang", args->hang_s, "seconds without a word before a worker is killed")->capture_default_str();
    sub->add_option("--cache-dir", args->cache, "kernel cache");
    sub->add_flag("--worker", args->worker)->group("");
    sub->add_flag("--simulate", args->simulate)->group("");
    sub->add_option("--simulate-crash", args->simulate_crash)->group("");
    sub->add_option("--case", args->filter.name, "case: exact name, else glob, else prefix");
    sub->add_option("--heads", args->filter.heads, "only these heads, as 32/8");
    sub->add_option("--page", args->filter.page_size, "only this page size");
    sub->add_option("--layout", args->filter.layout, "only random or contiguous pages")
        ->check(CLI::IsMember({"random", "contiguous"}));
    sub->add_option("--dtype", args->filter.dtype, "only fp16 or bf16")->check(CLI::IsMember({"fp16", "bf16"}));
    args->filter.add_kv_dtype(*sub);
    sub->add_option("--head-dim", args->filter.head_dim, "only this head dimension");
    sub->add_option("--set", args->filter.set, "only cases of this set");
    sub->add_option("--passes", args->passes, "training workloads: of fwd,bwd")->capture_default_str();
    sub->add_flag("--runs", args->filter.runs, "contiguous cases of page size 1 without a page table");
    sub->add_option("--limit", args->filter.limit, "stop after so many of a file");
    args->json.add_option(*sub);
    sub->callback([args, &action] { action = [args] { return tune_command(*args); }; });
}

}  // namespace sapwood::tool
