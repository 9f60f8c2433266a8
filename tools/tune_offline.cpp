// SPDX-License-Identifier: Apache-2.0
// `sapwood tune` without a GPU: candidates are pruned, compiled for the SM and ranked; nothing is measured or recorded.
#include <atomic>
#include <map>
#include <thread>

#include "cuda/nvrtc.h"
#include "engine/tuning.h"
#include "jit/disk_cache.h"
#include "kernel/render.h"
#include "terminal.h"
#include "tune/config_fields.h"
#include "tune/config_json.h"
#include "tune/prune.h"
#include "tune_case.h"

namespace sapwood::tool {
namespace {

struct Compiled {
    int registers = 0, spill_bytes = 0;
    std::string failure;
};

/// Kernels by key: the same one serves many problems, and all splits.
class Compiler {
public:
    explicit Compiler(const TuneArgs& args) : cache_(std::filesystem::path(args.cache)) {}

    void compile(const std::vector<KernelKey>& keys) {
        std::vector<KernelKey> missing;
        for (const KernelKey& key : keys)
            if (!done_.contains(key)) missing.push_back(key), done_.emplace(key, Compiled{});
        std::atomic<std::size_t> next{0};
        const auto work = [&] {
            for (std::size_t i; (i = next++) < missing.size();) {
                Compiled& result = done_.at(missing[i]);
                try {
                    const auto artifact = cache_.get_or_compile(render(missing[i]), compiler_);
                    result = {artifact->resources.registers, artifact->resources.spill_bytes, {}};
                } catch (const Error& error) {
                    result.failure = error.what();
                }
            }
        };
        std::vector<std::thread> threads;
        const std::size_t wanted = std::min<std::size_t>(std::max(1u, std::thread::hardware_concurrency()), missing.size());
        for (std::size_t i = 1; i < wanted; ++i) threads.emplace_back(work);
        work();
        for (std::thread& thread : threads) thread.join();
    }
    const Compiled& of(const KernelKey& key) const { return done_.at(key); }

private:
    jit::DiskCache cache_;
    cuda::Nvrtc compiler_;
    std::map<KernelKey, Compiled> done_;
};

}  // namespace

int tune_offline(const TuneArgs& args) {
    const JobList list = tune_jobs(args);
    Engine engine({.target = args.target, .cache_dir = args.cache, .tune = "off"});
    const tune::DeviceFacts device = facts_of(setup_of(engine));
    std::FILE* notes = args.json.to_stdout() ? stderr : stdout;
    std::fprintf(notes, "%s as %s: cost in microseconds by the model, nothing is measured\n", args.target.c_str(),
                 device.name.c_str());
    Compiler compiler(args);
    Progress progress("tune", list.jobs.size());
    std::vector<TuneOutcome> outcomes;
    std::size_t failed = 0;
    JsonLines json = args.json;
    Table table({{"rank", 4},
                 {"cost", 8},
                 {"plan", 8},
                 {"items", 6},
                 {"registers", 9},
                 {"spills", 6},
                 {"shared", 7},
                 {"blocks/SM", 9},
                 {"status", -16},
                 {"configuration", -12}},
                notes);
    for (std::size_t index = 0; index < list.jobs.size(); ++index) {
        const TuneJob& job = list.jobs[index];
        progress.step(index, job.title);
        tune::CandidateSet set = TuneCase(job).candidates(device, tune_options(args), {});
        std::vector<KernelKey> keys;
        for (const std::size_t i : set.alive()) keys.push_back(key_of(job, set.all[i].config, args.target));
        compiler.compile(keys);
        for (const std::size_t i : set.alive()) {
            TuneCandidate& candidate = set.all[i];
            const Compiled& compiled = compiler.of(key_of(job, candidate.config, args.target));
            if (compiled.failure.empty()) {
                tune::apply_compiled(device, compiled.registers, compiled.spill_bytes, candidate);
                continue;
            }
            candidate.status = "build-failed";
            candidate.reason = compiled.failure;
            ++failed;
        }
        tune::drop_spilling(set.all, set.tolerated_spill);
        TuneOutcome outcome;
        outcome.title = job.title;
        outcome.bucket = job.bucket;
        outcome.report.bucket = job.bucket.to_string();
        outcome.report.list = set.list.to_string();
        outcome.report.floor_us = set.floor_us;
        outcome.report.default_config = set.all.front().config;
        outcome.report.model_choice = outcome.report.best = outcome.chosen = set.all[tune::least_cost(set.all)].config;
        std::vector<const TuneCandidate*> rows;
        nlohmann::json line = {{"case", job.title},
                               {"bucket", outcome.report.bucket},
                               {"floor_us", set.floor_us},
                               {"candidates", nlohmann::json::array()}};
        for (const TuneCandidate& c : set.all) {
            rows.push_back(&c);
            line["candidates"].push_back({{"config", tune::config_json(c.config)},
                                          {"status", c.status},
                                          {"reason", c.reason},
                                          {"cost_us", c.cost_us},
                                          {"model_us", c.model_us},
                                          {"arithmetic_us", c.arithmetic_us},
                                          {"items", c.items},
                                          {"partial_rows", c.partial_rows},
                                          {"registers", c.registers},
                                          {"compiled", c.compiled},
                                          {"spill_bytes", c.spill_bytes},
                                          {"shared_bytes", c.shared_bytes},
                                          {"blocks_per_sm", c.blocks_per_sm}});
        }
        json.write(line);
        std::stable_sort(rows.begin(), rows.end(), [](const auto* a, const auto* b) {
            const auto key = [](const TuneCandidate& c) {
                return std::make_pair(c.status != "ok", c.cost_us > 0 ? c.cost_us : 1e30);
            };
            return key(*a) < key(*b);
        });
        if (!json.to_stdout()) {
            progress.clear();
            std::printf("%s  (candidates of %s, floor %.2f us, %s)\n", job.title.c_str(), outcome.report.list.c_str(), set.floor_us,
                        outcome.report.bucket.c_str());
            int rank = 0;
            for (const TuneCandidate* c : rows) {
                const bool alive = c->status == "ok";
                if (!alive && !args.exhaustive && c->status.starts_with("pruned:") && !c->compiled) continue;
                table.row({alive ? text("%d", ++rank) : "", c->cost_us > 0 ? text("%.2f", c->cost_us) : "-",
                           c->model_us > 0 ? text("%.2f", c->model_us) : "-", text("%lld", static_cast<long long>(c->items)),
                           text("%s%d", c->compiled ? "" : "~", c->registers), c->compiled ? text("%d", c->spill_bytes) : "-",
                           text("%d", c->shared_bytes), text("%d", c->blocks_per_sm), c->status,
                           tune::config_text(c->config) + (c == &set.all.front() ? "  (default)" : "") +
                               (c->reason.empty() ? "" : "  " + c->reason)});
            }
        }
        outcome.report.candidates = std::move(set.all);
        outcomes.push_back(std::move(outcome));
    }
    progress.clear();
    std::fprintf(
        notes,
        "%zu problems (%zu of equal sizes, %zu beyond %d a bucket, %zu of other shards left out); %zu kernels did not compile\n",
        list.jobs.size(), list.same, list.crowded, args.per_bucket, list.other_shards, failed);
    if (!args.report.empty()) write_report(args.report, args, device.name, outcomes);
    return failed ? kCheckFailed : kOk;
}

}  // namespace sapwood::tool
