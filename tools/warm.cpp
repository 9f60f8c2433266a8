// SPDX-License-Identifier: Apache-2.0
// sapwood warm: compiles every kernel that an engine will need into the cache, before it starts; needs no GPU.
#include <mutex>

#include "base/thread_pool.h"
#include "kernel_set.h"
#include "terminal.h"

namespace sapwood::tool {
namespace {

struct WarmOptions {
    KernelSet kernels;
    std::string cache;
    unsigned jobs = 0;
    bool list = false, json = false;
};

int list(const std::map<std::string, KernelSet::Target>& targets, const WarmOptions& options) {
    std::size_t count = 0, plans = 0, faults = 0;
    for (const auto& [name, target] : targets) {
        for (const std::string& key : target.keys) std::printf("%s\n", key.c_str());
        for (const std::string& fault : target.faults) std::fprintf(stderr, "%s: %s\n", name.c_str(), fault.c_str());
        count += target.keys.size(), plans += target.plans, faults += target.faults.size();
    }
    if (!options.json) std::fprintf(stderr, "%zu kernels, from %zu plans\n", count, plans);
    return faults ? kCheckFailed : kOk;
}

int warm(const WarmOptions& options) {
    const double begin = now_ms();
    auto targets = options.kernels.resolve({.cache_dir = options.cache});
    const double planned = now_ms();
    if (options.list) return list(targets, options);
    struct Job {
        Engine* engine;
        std::string key;
        KernelReport report;
    };
    std::vector<Job> jobs;
    std::size_t failed = 0, plans = 0;
    for (auto& [name, target] : targets) {
        const std::string cache = target.engine->describe_cache();
        if (cache.starts_with("memory only")) throw Stop{kNotPossible, "there is no cache to warm: " + cache};
        for (const std::string& key : target.keys) jobs.push_back({target.engine.get(), key, {}});
        for (const std::string& fault : target.faults) std::fprintf(stderr, "%s: no kernel: %s\n", name.c_str(), fault.c_str());
        failed += target.faults.size(), plans += target.plans;
    }
    Table table({{"target", -8}, {"kernel", -68}, {"from", -8}, {"compile", 8}, {"registers", 9}, {"spills", 6}, {"", -6}});
    Progress progress("warm", jobs.size());
    std::mutex mutex;
    std::size_t done = 0, compiled = 0;
    parallel_for(jobs.size(), options.jobs, [&](std::size_t i) {
        Job& job = jobs[i];
        job.report = job.engine->prepare_keys({&job.key, 1})[0];
        const KernelReport& report = job.report;
        std::lock_guard lock(mutex);
        progress.step(++done, job.key);
        failed += !report.error.empty(), compiled += report.origin == "compiled";
        if (options.json) {
            nlohmann::json line = to_json(report);
            line["error"] = report.error;
            std::printf("%s\n", line.dump().c_str());
            return;
        }
        progress.clear();
        table.row({job.engine->target(), job.key, report.origin, report.error.empty() ? text("%.0f ms", report.compile_ms) : "",
                   text("%d", report.registers), text("%d", report.spill_bytes), report.error.empty() ? "ok" : "FAILED"});
    });
    progress.clear();
    bool no_compiler = failed > 0;
    for (const Job& job : jobs) {
        if (job.report.error.empty()) continue;
        std::fprintf(stderr, "%s\n", job.report.error.c_str());
        no_compiler = no_compiler && job.report.error.starts_with(error_code_name(ErrorCode::kNoCompiler));
    }
    std::fprintf(options.json ? stderr : stdout,
                 "%zu kernels for %zu targets: %zu compiled, %zu failed, %.1f s (%.2f s of it for %zu plans)\n", jobs.size(),
                 targets.size(), compiled, failed, (now_ms() - begin) / 1e3, (planned - begin) / 1e3, plans);
    return !failed ? kOk : no_compiler ? kNotPossible : kCheckFailed;
}

}  // namespace

void add_warm(CLI::App& app, Action& action) {
    auto options = std::make_shared<WarmOptions>();
    CLI::App* sub = app.add_subcommand(
        "warm",
        "compile every kernel that an engine configuration, a trace or a list of keys needs, for the targets named; no GPU needed");
    options->kernels.add_options(*sub);
    sub->add_option("--jobs", options->jobs, "compiles at a time (default: one a core)");
    sub->add_flag("--list", options->list, "only print the keys");
    sub->add_flag("--json", options->json, "JSON lines");
    sub->add_option("--cache-dir", options->cache, "kernel cache (default: as `sapwood doctor` says)");
    sub->callback([options, &action] {
        if (!options->kernels.given()) throw CLI::ValidationError("warm", "needs --engine-config, --from-trace or --keys");
        action = [options] { return warm(*options); };
    });
}

}  // namespace sapwood::tool
