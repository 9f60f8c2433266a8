// SPDX-License-Identifier: Apache-2.0
// sapwood demo: the main job on real input, step by step, with what each step did and took.
#include <cstdio>

#include "execute.h"
#include "terminal.h"

namespace sapwood::tool {
namespace {

struct DemoOptions {
    std::string workloads = "tests/workloads", cache;
};

support::DecodeCase pick(const std::string& file, const std::string& name, const support::Variant& variant) {
    const auto specs = support::select(support::load_workload(file), name);
    if (specs.size() != 1) throw Stop{kUsage, file + " has no case " + name};
    return support::build_case(specs[0], variant);
}

std::string origin_text(const KernelReport& kernel) {
    if (kernel.origin == "compiled") return text("compiled in %.0f ms", kernel.compile_ms);
    return text("cache hit (%s, %.2f ms; once compiled in %.0f ms)", kernel.origin.c_str(), kernel.prepare_ms, kernel.compile_ms);
}

bool show(Engine& engine, const DevicePtr& device, const support::DecodeCase& which, const char* what) {
    std::printf("\n== %s: %s\n%s\n", what, which.title().c_str(), which.forest.to_string(16).c_str());
    Progress progress("demo", 5);
    std::size_t step = 0;
    const Execution ran =
        execute(engine, device, which, {.check = true, .stage = [&](const char* doing) { progress.step(step++, doing); }});
    progress.clear();
    const double floor_us = floor_bytes(which) / 3e6;
    std::printf("plan     %s, %lld work items a KV head, %lld partial rows, grid %d\n%s\n", micros_text(ran.plan_us).c_str(),
                static_cast<long long>(ran.plan.items), static_cast<long long>(ran.plan.partial_rows), ran.plan.grid,
                ran.plan_text.c_str());
    std::printf("key      %s\nkernel   %s\n", ran.kernel.key.c_str(), origin_text(ran.kernel).c_str());
    if (ran.kernel.registers > 0)
        std::printf("         %d registers, %d bytes spilled, %d bytes shared, %d threads\n", ran.kernel.registers,
                    ran.kernel.spill_bytes, ran.kernel.shared_bytes, ran.kernel.threads);
    std::printf("run      %s on %s\n", micros_text(ran.run_us).c_str(), engine.device_name().c_str());
    std::printf("bytes    %s to move at least", bytes_text(floor_bytes(which)).c_str());
    if (device)
        std::printf(": %.2f us at 3.0 TB/s, reached %.0f %% of that%s\n", floor_us, 100 * floor_us / ran.run_us,
                    floor_us < ran.run_us ? "" : " (the L2 cache was warm)");
    else
        std::printf(" (%.2f us at the 3.0 TB/s of an H100; the host target is for correctness, not speed)\n", floor_us);
    const bool good = ran.comparison->passes(which.variant.dtype);
    std::printf("check    %s against the fp64 oracle: %s\n", good ? "ok" : "FAILED", ran.comparison->to_string().c_str());
    return good;
}

/// Without a GPU: the same problem for every SM, as far as a compiler can tell.
void compile_for_all(const DemoOptions& options, const support::DecodeCase& which) {
    std::printf("\n== the same problem compiled by NVRTC: %s\n", which.title().c_str());
    Table table(
        {{"target", -8}, {"registers", 9}, {"spills", 8}, {"shared", 9}, {"threads", 7}, {"blocks/SM", 9}, {"kernel", -40}});
    std::string key;
    Progress progress("compile", 5);
    std::size_t done = 0;
    for (const char* target : {"sm_80", "sm_89", "sm_90a", "sm_100a", "sm_120a"}) {
        progress.step(done++, target);
        try {
            Engine engine({.target = target, .cache_dir = options.cache});
            DecodePlan plan = engine.plan_decode(which.problem(), which.forest);
            const KernelReport kernel = engine.prepare(plan);
            key = kernel.key;
            progress.clear();
            table.row({target, text("%d", kernel.registers), text("%d B", kernel.spill_bytes), bytes_text(kernel.shared_bytes),
                       text("%d", kernel.threads), text("%d", blocks_per_sm(kernel)), origin_text(kernel)});
        } catch (const Error& error) {
            if (error.code() != ErrorCode::kNoCompiler) throw;
            progress.clear();
            std::printf("%s: not compiled: %s\n", target, error.what());
            return;
        }
    }
    std::printf("key      %s\n", key.c_str());
}

int demo(const DemoOptions& options) {
    const std::string trees = options.workloads + "/fasttree.json", forests = options.workloads + "/fewshot.json";
    Engine engine({.cache_dir = options.cache});
    const DevicePtr device = device_of("auto", engine.has_device());
    std::printf("target   %s, %s\ncache    %s\n", engine.target().c_str(), engine.device_name().c_str(),
                engine.describe_cache().c_str());
    const support::DecodeCase tree = pick(trees, "FT2", {.dtype = DType::fp16, .q_heads = 32, .kv_heads = 8, .page_size = 1});
    const support::DecodeCase two_roots =
        pick(forests, "QX2", {.dtype = DType::bf16, .q_heads = 40, .kv_heads = 8, .page_size = 16});
    bool good = show(engine, device, tree, "a FastTree benchmark tree");
    good = show(engine, device, two_roots, "a forest with two roots, empty nodes, requests on inner nodes") && good;
    if (!device) {
        compile_for_all(options, tree);
        compile_for_all(options, two_roots);
    }
    return good ? kOk : kCheckFailed;
}

}  // namespace

void add_demo(CLI::App& app, Action& action) {
    auto options = std::make_shared<DemoOptions>();
    CLI::App* sub = app.add_subcommand("demo", "a FastTree tree and a forest with two roots, from plan to checked result");
    sub->add_option("--workloads", options->workloads, "directory of the workload files")->capture_default_str();
    sub->add_option("--cache-dir", options->cache, "kernel cache");
    sub->callback([options, &action] { action = [options] { return demo(*options); }; });
}

}  // namespace sapwood::tool
