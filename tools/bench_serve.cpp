// SPDX-License-Identifier: Apache-2.0
// sapwood bench-serve: what a server feels. How long it takes from a bundle to the first launch, and how long a call waits while a
// changing workload keeps asking for kernels that nobody has compiled.
#include <unistd.h>

#include <fstream>
#include <thread>
#include <utility>

#include "cuda/device.h"
#include "engine/engine_impl.h"
#include "engine/pack.h"
#include "execute.h"
#include "kernel/key_text.h"
#include "terminal.h"

namespace sapwood::tool {
namespace {

struct ServeBenchOptions {
    std::string target = "auto", policies = "blocking,background", bundle;
    int calls = 6000, pace_us = 1000, repeats = 5;
    unsigned threads = 0;
    bool json = false;
};

/// One dtype and page size with its tensors, wherever the engine runs.
struct Trait {
    support::DecodeCase which;
    support::Inputs inputs;
    std::optional<DeviceCase> on_device;

    Trait(const DevicePtr& device, DType dtype, std::int32_t page, std::int64_t prefix)
        : which(support::build_case(spec(prefix),
                                    {.dtype = dtype, .head_dim = 128, .q_heads = 32, .kv_heads = 8, .page_size = page},
                                    {.spare_tokens = kSpare})),
          inputs(support::make_inputs(which)) {
        if (device) on_device.emplace(device, which, inputs);
    }
    const DecodeTensors& tensors() const { return on_device ? on_device->tensors() : inputs.tensors; }
    static constexpr std::int32_t kSpare = 16;

private:
    static support::CaseSpec spec(std::int64_t prefix) {
        support::CaseSpec made;
        made.name = "serve", made.seed = 77;
        made.nodes = {{-1, prefix, 0}};
        for (int i = 0; i < 16; ++i) made.nodes.push_back({0, 40 + i, 1});
        return made;
    }
};

struct TemporaryCache {
    std::string path = (std::filesystem::temp_directory_path() / "sapwood-bench-XXXXXX").string();
    TemporaryCache() {
        if (mkdtemp(path.data()) == nullptr) throw Stop{kNotPossible, "cannot make a temporary directory"};
    }
    ~TemporaryCache() {
        std::error_code ignored;
        std::filesystem::remove_all(path, ignored);
    }
};

double at(const std::vector<double>& sorted, double q) {
    return sorted.empty() ? 0 : sorted[static_cast<std::size_t>(q * static_cast<double>(sorted.size() - 1))];
}

/// Tile shapes that a workload might come to want, one after the other. Which of them exist on the target, the planner says.
constexpr DecodeConfig kWanted[] = {
    {.block_kv = 32}, {.warps = 4}, {.stages = 3}, {.warps = 4, .block_kv = 32}, {.warps = 4, .stages = 4}};

struct Stream {
    std::vector<double> all, first;  // microseconds of CPU time's wall clock a call: plan or update, and launch
    EngineStats stats;
    std::size_t wrong = 0;
};

Stream run_stream(const ServeBenchOptions& options, CompilePolicy policy) {
    const TemporaryCache cache;
    Engine engine({.target = options.target, .cache_dir = cache.path, .compile = policy, .compile_threads = options.threads});
    const DevicePtr device = device_of(options.target, engine.has_device());
    if (!engine.has_device()) throw Stop{kNotPossible, "bench-serve needs a target that can launch, not " + options.target};
    std::optional<GpuStream> stream;
    if (device) stream.emplace(device);
    void* const on = stream ? stream->get() : nullptr;
    std::vector<std::unique_ptr<Trait>> traits;
    for (const DType dtype : {DType::bf16, DType::fp16})
        for (const std::int32_t page : {1, 16, 64})
            traits.push_back(std::make_unique<Trait>(device, dtype, page, device ? 4096 : 64));

    std::vector<DecodePlan> plans;  // one a trait, as a server keeps them
    for (const auto& trait : traits) plans.push_back(engine.plan_decode(trait->which.problem(), trait->which.forest));
    for (const KernelReport& report : engine.prepare(std::span(plans)))
        if (!report.error.empty()) throw Stop{kCheckFailed, report.error};
    for (std::size_t i = 0; i < plans.size(); ++i) engine.launch(plans[i], traits[i]->tensors(), on);

    Stream result;
    std::vector<Forest> forests;
    for (const auto& trait : traits) forests.push_back(trait->which.forest);
    const std::size_t changes = traits.size() * std::size(kWanted),
                      every = std::max<std::size_t>(1, static_cast<std::size_t>(options.calls) / changes);
    Progress progress("bench-serve", static_cast<std::size_t>(options.calls));
    for (std::size_t call = 0; call < static_cast<std::size_t>(options.calls); ++call) {
        progress.step(call, policy == CompilePolicy::blocking ? "blocking" : "background");
        const std::size_t change = call / every, which = call % every == 0 ? change % traits.size() : call % traits.size();
        const bool fresh = call % every == 0 && change < changes;
        Forest& forest = forests[which];
        // A token each, as long as there is room behind the nodes; then back to the beginning.
        if (forest.total_tokens() + static_cast<std::int64_t>(forest.live_requests()) >
            traits[which]->which.counts.unique_tokens + Trait::kSpare * static_cast<std::int64_t>(forest.live_requests()))
            forest = traits[which]->which.forest;
        else
            forest.append_token_to_each_request();
        const double start = now_ms();
        if (fresh)
            plans[which] = engine.plan_decode(traits[which]->which.problem(), forest, kWanted[change / traits.size()]);
        else
            plans[which].update(forest);
        if (device)
            engine.launch(plans[which], traits[which]->tensors(), on);
        else
            engine.upload(plans[which]);  // a launch on the host is the calculation itself
        const double took = (now_ms() - start) * 1e3;
        result.all.push_back(took);
        if (fresh) result.first.push_back(took);
        std::this_thread::sleep_for(std::chrono::microseconds(options.pace_us));
    }
    engine.finish_compiles();
    result.stats = engine.stats();
    for (std::size_t i = 0; i < plans.size(); ++i) {  // what all those plans have come to is still right
        Trait& trait = *traits[i];
        plans[i].update(trait.which.forest);
        if (trait.on_device) trait.on_device->poison();
        support::poison(trait.inputs);
        engine.launch(plans[i], trait.tensors(), on);
        if (device) device->synchronize(on), trait.on_device->download(trait.inputs);
        const auto compared = support::compare(trait.which.problem(), trait.inputs.tensors,
                                               oracle::decode(trait.which.forest, trait.which.problem(), trait.inputs.tensors, 1));
        result.wrong += !compared.passes(trait.which.variant.dtype);
    }
    std::sort(result.all.begin(), result.all.end());
    std::sort(result.first.begin(), result.first.end());
    return result;
}

/// What a launch costs but for the driver: nanoseconds, with a kernel that does nothing in the place of the real one.
double launch_overhead(Engine& engine, DecodePlan& plan, const DecodeTensors& tensors) {
    struct Nothing final : jit::LoadedKernel {
        void launch(const jit::LaunchShape&, const void*, std::size_t, void*) override {}
    };
    constexpr int kCalls = 1'000'000;
    auto& loaded = engine.impl().service->find(parse_key(plan.kernel_key()))->loaded;
    std::unique_ptr<jit::LoadedKernel> real = std::exchange(loaded, std::make_unique<Nothing>());
    std::vector<double> times;
    for (int i = 0; i < 5; ++i) {
        const double begin = now_ms();
        for (int n = 0; n < kCalls; ++n) engine.launch(plan, tensors);
        times.push_back((now_ms() - begin) * 1e6 / kCalls);
    }
    loaded = std::move(real);
    return median(times);
}

/// Milliseconds from nothing to the first launch, kernel from a bundle, no disk cache.
void time_startup(const ServeBenchOptions& options) {
    const double begin = now_ms();
    if (options.target != "host" && cuda::device_count() > 0) cuda::Device::open(0)->synchronize(nullptr);
    const double driver = now_ms() - begin;
    Table table({{"start", 5},
                 {"engine", 9},
                 {"plan", 9},
                 {"kernel", 9},
                 {"buffers", 9},
                 {"upload", 9},
                 {"launch", 9},
                 {"all", 9},
                 {"from", 8}});
    const DevicePtr device = device_of(options.target, cuda::device_count() > 0);
    Trait trait(device, DType::bf16, 16, 64);
    std::string bundle = options.bundle;
    const TemporaryCache own;
    if (bundle.empty()) {  // of the one kernel
        Engine maker({.target = options.target});
        jit::BundleContents contents = empty_bundle();
        pack_kernel(contents, maker, parse_key(maker.plan_decode(trait.which.problem(), trait.which.forest).kernel_key()));
        bundle = own.path + "/one.swb";
        const auto bytes = jit::encode_bundle(contents);
        std::ofstream(bundle, std::ios::binary)
            .write(reinterpret_cast<const char*>(bytes.data()), static_cast<std::streamsize>(bytes.size()));
    }
    std::printf("driver and context: %.1f ms, once a process; then, in milliseconds:\n", driver);
    for (int i = 0; i < options.repeats; ++i) {
        double marks[7] = {now_ms()};
        Engine engine({.target = options.target, .disk_cache = false, .bundles = {bundle}});
        marks[1] = now_ms();
        DecodePlan plan = engine.plan_decode(trait.which.problem(), trait.which.forest);
        marks[2] = now_ms();
        const std::string key = plan.kernel_key();
        const KernelReport kernel = engine.prepare_keys({&key, 1})[0];
        marks[3] = now_ms();
        engine.prepare(plan);
        marks[4] = now_ms();
        engine.upload(plan);
        marks[5] = now_ms();
        engine.launch(plan, trait.tensors());
        marks[6] = now_ms();
        std::vector<std::string> row = {text("%d", i + 1)};
        for (int n = 1; n < 7; ++n) row.push_back(text("%.3f", marks[n] - marks[n - 1]));
        row.push_back(text("%.3f", marks[6] - marks[0]));
        row.push_back(kernel.origin);
        table.row(row);
        if (device) device->synchronize(nullptr);
        if (i + 1 == options.repeats)
            std::printf("a launch, the library's own part: %.0f ns\n", launch_overhead(engine, plan, trait.tensors()));
    }
}

int bench_serve(const ServeBenchOptions& options) {
    if (!options.json) time_startup(options);
    Table table({{"policy", -20},
                 {"calls", 6},
                 {"p50", 9},
                 {"p99", 9},
                 {"p99.9", 9},
                 {"max", 9},
                 {"first p50", 9},
                 {"first max", 9},
                 {"compiles", 8},
                 {"stand-in", 8},
                 {"switches", 8},
                 {"wrong", 5}});
    std::size_t wrong = 0;
    if (!options.json)
        std::printf("\nmicroseconds of a call (plan or update, upload, launch), while the workload keeps changing:\n");
    for (const auto& [name, policy] :
         {std::pair{"blocking", CompilePolicy::blocking}, std::pair{"background", CompilePolicy::background}}) {
        if (options.policies.find(name) == std::string::npos) continue;
        const Stream s = run_stream(options, policy);
        wrong += s.wrong;
        if (options.json) {
            std::printf("%s\n", nlohmann::json{{"policy", name},
                                               {"calls", s.all.size()},
                                               {"p50_us", at(s.all, 0.5)},
                                               {"p99_us", at(s.all, 0.99)},
                                               {"p999_us", at(s.all, 0.999)},
                                               {"max_us", at(s.all, 1)},
                                               {"first_p50_us", at(s.first, 0.5)},
                                               {"first_max_us", at(s.first, 1)},
                                               {"compiles", s.stats.compiles},
                                               {"stand_in", s.stats.stand_in_launches},
                                               {"switches", s.stats.switches},
                                               {"wrong", s.wrong}}
                                    .dump()
                                    .c_str());
            continue;
        }
        table.row({name, text("%zu", s.all.size()), text("%.1f", at(s.all, 0.5)), text("%.1f", at(s.all, 0.99)),
                   text("%.1f", at(s.all, 0.999)), text("%.1f", at(s.all, 1)), text("%.1f", at(s.first, 0.5)),
                   text("%.1f", at(s.first, 1)), text("%llu", static_cast<unsigned long long>(s.stats.compiles)),
                   text("%llu", static_cast<unsigned long long>(s.stats.stand_in_launches)),
                   text("%llu", static_cast<unsigned long long>(s.stats.switches)), text("%zu", s.wrong)});
    }
    return wrong ? kCheckFailed : kOk;
}

}  // namespace

void add_bench_serve(CLI::App& app, Action& action) {
    auto options = std::make_shared<ServeBenchOptions>();
    CLI::App* sub = app.add_subcommand(
        "bench-serve", "time a start from a bundle, and the waits of a changing workload by compile policy, results checked");
    sub->add_option("--target", options->target, "auto, host, cuda, cuda:N")->capture_default_str();
    sub->add_option("--policies", options->policies, "which of blocking,background")->capture_default_str();
    sub->add_option("--calls", options->calls, "of the stream")->capture_default_str();
    sub->add_option("--pace-us", options->pace_us, "pause between calls")->capture_default_str();
    sub->add_option("--compile-threads", options->threads, "0: one a core");
    sub->add_option("--bundle", options->bundle, "to start from (default: one made for the purpose)");
    sub->add_option("--repeats", options->repeats, "of the start")->capture_default_str();
    sub->add_flag("--json", options->json, "JSON lines, of the stream alone");
    sub->callback([options, &action] { action = [options] { return bench_serve(*options); }; });
}

}  // namespace sapwood::tool
