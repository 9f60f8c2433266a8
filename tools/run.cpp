// SPDX-License-Identifier: Apache-2.0
// sapwood run: executes cases of a workload file and checks them against the oracle.
#include "execute.h"
#include "packed.h"
#include "support/packed_workload.h"
#include "terminal.h"

namespace sapwood::tool {
namespace {

struct RunOptions {
    Selection cases;
    JsonLines json;
    std::string target = "auto", config, cache, passes = "fwd,bwd", backward_config;
    bool check = false;
    std::int32_t check_requests = 0;
    double host_work = 2e9;
    std::uint64_t schedule_seed = 0;
};

int run(RunOptions& options) {
    if (support::is_packed_workload(options.cases.file))
        return run_packed(options.cases, options.json,
                          {.target = options.target,
                           .cache = options.cache,
                           .config = options.config,
                           .backward_config = options.backward_config,
                           .check = options.check,
                           .check_rows = options.check_requests,
                           .host_work = options.host_work,
                           .passes = options.passes});
    const auto items = options.cases.items();
    Engine engine({.target = options.target, .cache_dir = options.cache, .host_schedule_seed = options.schedule_seed});
    const DevicePtr device = device_of(options.target, engine.has_device());
    const bool on_host = engine.has_device() && !device;
    if (!options.json.to_stdout())
        std::printf("target %s%s\n", engine.target().c_str(),
                    engine.has_device() ? (", " + engine.device_name()).c_str() : ": compiled and inspected here, not launched");
    Table table(engine.has_device() ? std::vector<Table::Column>{{"case", -44},
                                                                 {"requests", 8},
                                                                 {"plan", 10},
                                                                 {"kernel", 10},
                                                                 {"ms", 8},
                                                                 {"run", 10},
                                                                 {"floor@3TB/s", 11},
                                                                 {"error", 9},
                                                                 {"lse", 9},
                                                                 {"check", -8}}
                                    : std::vector<Table::Column>{{"case", -44},
                                                                 {"kernel", 10},
                                                                 {"ms", 8},
                                                                 {"registers", 9},
                                                                 {"spills", 8},
                                                                 {"shared", 8},
                                                                 {"threads", 8},
                                                                 {"blocks/SM", 9},
                                                                 {"key", -8}});
    Progress progress("run", items.size());
    std::size_t failed = 0, skipped = 0, done = 0;
    for (const auto& [spec, variant] : items) {
        const support::DecodeCase which = support::build_case(spec, variant, options.cases.build_options());
        const std::string title = which.title();
        if (on_host && flops(which) > options.host_work) {
            ++skipped, ++done;
            options.json.write({{"case", spec.name}, {"skipped", "over --host-work"}, {"flops", flops(which)}});
            continue;
        }
        const auto stage = [&](const char* doing) { progress.step(done, title + ": " + doing); };
        const Execution ran = execute(engine, device, which,
                                      {.config = parse_config(options.config),
                                       .check = options.check,
                                       .check_requests = options.check_requests,
                                       .stage = stage});
        ++done;
        const bool bad = ran.comparison && !ran.comparison->passes(variant.dtype);
        failed += bad;
        nlohmann::json line = to_json(which);
        line["plan"] = to_json(ran.plan), line["kernel"] = to_json(ran.kernel), line["plan_us"] = ran.plan_us;
        if (ran.ran) line["run_us"] = ran.run_us, line["floor_us"] = floor_bytes(which) / 3e6;
        if (ran.comparison)
            line["error"] = ran.comparison->out_error, line["worst_request"] = ran.comparison->worst_request,
            line["lse_error"] = ran.comparison->lse_error, line["nan"] = ran.comparison->nan_count,
            line["checked_requests"] = ran.comparison->requests, line["ok"] = !bad;
        options.json.write(line);
        if (options.json.to_stdout()) continue;
        progress.clear();
        const std::string ms = text("%.1f", ran.prepare_ms);
        if (!engine.has_device()) {
            table.row({title, ran.kernel.origin, ms, text("%d", ran.kernel.registers), text("%d B", ran.kernel.spill_bytes),
                       text("%d B", ran.kernel.shared_bytes), text("%d", ran.kernel.threads), text("%d", blocks_per_sm(ran.kernel)),
                       ran.kernel.key});
        } else {
            table.row({title, text("%lld", static_cast<long long>(ran.plan.requests)), micros_text(ran.plan_us), ran.kernel.origin,
                       ms, micros_text(ran.run_us), micros_text(floor_bytes(which) / 3e6),
                       ran.comparison ? text("%.2e", ran.comparison->out_error) : "",
                       ran.comparison ? text("%.1e", ran.comparison->lse_error) : "",
                       !ran.comparison ? ""
                       : bad           ? "FAILED"
                                       : "ok"});
        }
        if (bad) std::printf("  %s\n", ran.comparison->to_string().c_str());
    }
    progress.clear();
    std::FILE* to = options.json.to_stdout() ? stderr : stdout;
    std::fprintf(to, "%zu cases: %zu %s", items.size(), items.size() - failed - skipped,
                 options.check && engine.has_device() ? "passed" : "done");
    if (failed) std::fprintf(to, ", %zu FAILED", failed);
    if (skipped)
        std::fprintf(to, ", %zu skipped: more work than the host target should do (--host-work %.0e FLOP)", skipped,
                     options.host_work);
    std::fprintf(to, "\n");
    return failed ? kCheckFailed : kOk;
}

}  // namespace

void add_run(CLI::App& app, Action& action) {
    auto options = std::make_shared<RunOptions>();
    CLI::App* sub =
        app.add_subcommand("run", "run cases of a workload file; compile them only, if the target is an SM that is not here");
    options->cases.add_options(*sub);
    sub->add_option("--target", options->target, "auto, host, cuda, cuda:N, or an SM such as sm_90a")->capture_default_str();
    sub->add_flag("--check", options->check, "compare with the fp64 oracle; exit code 1 if any case fails");
    sub->add_option("--check-requests", options->check_requests, "how many requests to compare (0: all, fewer where that is slow)");
    sub->add_option("--config", options->config, "tile sizes, as warps=4,block_kv=64,stages=3,blocks=2");
    sub->add_option("--backward-config", options->backward_config, "the same for the backward pass of training workloads");
    sub->add_option("--passes", options->passes, "training workloads: fwd, or fwd,bwd")->capture_default_str();
    sub->add_option("--host-work", options->host_work, "skip cases of more FLOP than this on the host target")
        ->capture_default_str();
    sub->add_option("--schedule-seed", options->schedule_seed, "host target: shuffle the order of a block's threads");
    sub->add_option("--cache-dir", options->cache, "kernel cache (default: as `sapwood doctor` says)");
    options->json.add_option(*sub);
    sub->callback([options, &action] { action = [options] { return run(*options); }; });
}

}  // namespace sapwood::tool
