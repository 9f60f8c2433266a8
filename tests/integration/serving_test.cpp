// SPDX-License-Identifier: Apache-2.0
// An engine in a server: prepared in parallel, sealed, compiling in the background; and what its counters say.
#include <doctest/doctest.h>

#include <atomic>
#include <condition_variable>
#include <mutex>
#include <thread>

#include "engine/engine_impl.h"
#include "engine/plan_state.h"
#include "integration/small_problem.h"
#include "plan/decode_plan.h"
#include "support/cache_fixture.h"

using namespace sapwood;
using namespace sapwood::test;
namespace fs = std::filesystem;

namespace {

constexpr DecodeConfig kSmall = {.mainloop = Mainloop::mma, .warps = 4, .producers = 2, .block_kv = 32, .stages = 3, .blocks = 1};

/// The host compiler behind a gate: compiles wait until it is opened.
class GatedCompiler : public jit::Compiler {
public:
    explicit GatedCompiler(std::unique_ptr<jit::Compiler> real) : real_(std::move(real)) {}
    std::string identity() override { return real_->identity(); }
    std::string family() override { return real_->family(); }
    jit::Artifact compile(const jit::CompileRequest& request) override {
        ++begun;
        std::unique_lock lock(mutex_);
        opened_.wait(lock, [&] { return open_; });
        lock.unlock();
        if (refuse) throw Error(ErrorCode::kCompileFailed, "refused " + request.name);
        return real_->compile(request);
    }
    void open(bool open = true) {
        std::lock_guard lock(mutex_);
        open_ = open;
        opened_.notify_all();
    }
    std::atomic<int> begun{0};
    std::atomic<bool> refuse{false};

private:
    std::unique_ptr<jit::Compiler> real_;
    std::mutex mutex_;
    std::condition_variable opened_;
    bool open_ = true;
};

struct Server {
    explicit Server(EngineOptions options = {}) : engine(with(std::move(options), dir.path() / "cache")) {
        auto& setup = engine.impl().service->setup;
        auto made = std::make_unique<GatedCompiler>(std::move(setup.compiler));
        gate = made.get();
        setup.compiler = std::move(made);
    }
    ~Server() { gate->open(); }  // or the engine would wait for what waits

    static EngineOptions with(EngineOptions options, const fs::path& cache) {
        options.target = "host";
        options.cache_dir = cache;
        return options;
    }

    TempDir dir;
    Engine engine;
    GatedCompiler* gate;
};

/// A host memory that says of one stream that it captures.
class CapturingMemory : public Memory {
public:
    explicit CapturingMemory(std::shared_ptr<Memory> real) : real_(std::move(real)) {}
    void* allocate(std::size_t bytes) override { return ++touched, real_->allocate(bytes); }
    void free(void* pointer) noexcept override { real_->free(pointer); }
    void copy_in(void* to, const void* from, std::size_t bytes, void* stream) override {
        ++touched;
        real_->copy_in(to, from, bytes, stream);
    }
    bool capturing(void* stream) override { return stream == kCapturing; }
    static inline int tag = 0;
    static constexpr void* kCapturing = &tag;
    int touched = 0;

private:
    std::shared_ptr<Memory> real_;
};

double metric(const std::string& text, const std::string& name) {
    for (std::size_t at = 0; (at = text.find("\n" + name, at)) != std::string::npos; ++at) {
        const std::size_t space = text.find(' ', at + 1 + name.size());
        if (text[at + 1 + name.size()] == '{' || text[at + 1 + name.size()] == ',') return std::stod(text.substr(space));
    }
    return -1;
}

}  // namespace

TEST_CASE("serving: many plans are prepared at once, each kernel compiled once; failures are told one by one") {
    Server server({.compile_threads = 2});
    SmallProblem paged, contiguous(0);
    std::vector<DecodePlan> plans;
    for (int i = 0; i < 2; ++i) {
        plans.push_back(paged.plan(server.engine));
        plans.push_back(contiguous.plan(server.engine));
    }
    server.gate->open(false);
    std::jthread opener([&] {
        while (server.gate->begun < 2) std::this_thread::yield();  // both wait at the gate: they are compiled side by side
        server.gate->open();
    });
    const auto reports = server.engine.prepare(std::span(plans));
    REQUIRE(reports.size() == 4);
    for (const KernelReport& report : reports) CHECK(report.error == "");
    CHECK(server.engine.stats().compiles == 2);
    CHECK(paged.launch_fault(server.engine, plans[0]) == "");
    CHECK(contiguous.launch_fault(server.engine, plans[3]) == "");

    const std::string good = paged.plan(server.engine, kSmall).kernel_key();
    server.gate->refuse = true;
    const std::string keys[] = {plans[0].kernel_key(), good};
    const auto again = server.engine.prepare_keys(keys);
    CHECK(again[0].error == "");
    CHECK(again[0].origin == "memory");
    CHECK(again[1].error.find("refused " + good) != std::string::npos);
    server.gate->refuse = false;
    CHECK(server.engine.prepare_keys(keys)[1].error == "");  // a failure is not kept
    const std::string foreign[] = {"decode/bf16/d128/v128/g4/page16/cap0/mma/w8/p4/kv64/s6/b1/sm_90a"},
                      nonsense[] = {"decode/bf16/d128"};
    check_refused(ErrorCode::kInvalidArgument, {"sm_90a", "host"}, [&] { server.engine.prepare_keys(foreign); });
    check_refused(ErrorCode::kInvalidArgument, {"decode/bf16/d128\"", "no kernel key"},
                  [&] { server.engine.prepare_keys(nonsense); });
}

TEST_CASE("serving: in the background, the nearest ready kernel serves until the plan's own takes over at an update") {
    Server server({.compile = CompilePolicy::background});
    Engine& engine = server.engine;
    SmallProblem small;
    const std::string ready[] = {small.plan(engine, kSmall).kernel_key()};
    engine.finish_compiles();
    const auto compiled = engine.stats().background_compiles;
    CHECK(engine.prepare_keys(ready)[0].error == "");
    const auto begun = server.gate->begun.load();
    server.gate->open(false);

    DecodePlan plan = engine.plan_decode(small.which.problem(), small.which.forest, {.warps = 8});
    DecodePlan captured = engine.plan_decode(small.which.problem(), small.which.forest, {.warps = 8});
    CHECK(plan.kernel_key() == ready[0]);
    CHECK(small.launch_fault(engine, plan) == "");  // while the compiler stands at the gate
    CHECK(small.launch_fault(engine, captured) == "");
    const KernelReport report = engine.prepare(plan);
    CHECK(report.key == ready[0]);
    CHECK(report.stands_in_for.find("/w8/") != std::string::npos);
    plan.update(small.which.forest);  // nothing to go over to yet
    CHECK(plan.kernel_key() == ready[0]);
    CHECK(engine.stats().stand_in_launches == 2);
    state_of(captured.impl())->fix();  // what a launch on a capturing stream does

    server.gate->open();
    engine.finish_compiles();
    CHECK(server.gate->begun == begun + 1);         // asked for twice, compiled once
    CHECK(small.launch_fault(engine, plan) == "");  // not before an update: the list is in the other's tiles
    CHECK(plan.kernel_key() == ready[0]);
    const void* buffers = plan.impl().device.get();
    plan.update(small.which.forest);
    CHECK(plan.kernel_key() == report.stands_in_for);
    CHECK(plan.impl().device.get() == buffers);
    CHECK(small.launch_fault(engine, plan) == "");
    captured.update(small.which.forest);  // its graph replays the stand-in for good
    CHECK(captured.kernel_key() == ready[0]);
    CHECK(small.launch_fault(engine, captured) == "");
    CHECK(engine.plan_decode(small.which.problem(), small.which.forest, {.warps = 8}).kernel_key() == report.stands_in_for);

    const EngineStats stats = engine.stats();
    CHECK(stats.stand_in_launches == 4);
    CHECK(stats.switches == 1);
    CHECK(stats.background_compiles == compiled + 1);
    CHECK(stats.launches == 5);
    std::uint64_t calls = 0;
    for (const KernelUse& use : engine.kernels()) calls += use.calls;
    CHECK(calls == 5);
}

TEST_CASE("serving: in the background with nothing to stand in, a call waits or is refused, as the policy says") {
    SmallProblem small;
    {
        LogCapture capture;
        Server server({.compile = CompilePolicy::background});
        DecodePlan plan = small.plan(server.engine);
        CHECK(small.launch_fault(server.engine, plan) == "");
        server.engine.finish_compiles();
        CHECK(server.gate->begun == 1);
        CHECK(server.engine.stats().stand_in_launches == 0);
        CHECK(capture.mentions("a call waits for kernel " + plan.kernel_key()));
    }
    Server server({.compile = CompilePolicy::background_or_error});
    server.gate->open(false);
    DecodePlan plan = small.plan(server.engine), late = small.plan(server.engine, kSmall);
    check_refused(ErrorCode::kNotPrepared, {plan.kernel_key().c_str(), "call again", "prepare_keys"},
                  [&] { server.engine.launch(plan, small.inputs.tensors); });
    server.gate->open();
    server.engine.finish_compiles();
    CHECK(small.launch_fault(server.engine, plan) == "");
    CHECK(server.gate->begun == 2);
    // Sealed means sealed: planning goes on, the call is refused, nothing is compiled and nothing stands in.
    server.engine.seal();
    DecodePlan sealed = small.plan(server.engine, {.warps = 4, .block_kv = 64});
    check_refused(ErrorCode::kNotPrepared, {"sealed", "/kv64/"}, [&] { server.engine.launch(sealed, small.inputs.tensors); });
    CHECK(small.launch_fault(server.engine, late) == "");
    CHECK(server.gate->begun == 2);
}

TEST_CASE("serving: a background compile that fails is told once, and calls go on with what is ready") {
    Server server({.compile = CompilePolicy::background});
    SmallProblem small;
    DecodePlan first = small.plan(server.engine, kSmall);
    server.engine.prepare(first);
    server.engine.finish_compiles();
    LogCapture capture;
    server.gate->refuse = true;
    for (int i = 0; i < 3; ++i) {
        DecodePlan plan = small.plan(server.engine);
        CHECK(small.launch_fault(server.engine, plan) == "");
        server.engine.finish_compiles();
    }
    CHECK(server.engine.stats().background_failures == 1);
    CHECK(capture.warnings().size() == 1);
    CHECK(capture.mentions("refused"));
    SmallProblem other(0);  // with nothing to stand in the call says so, without another try
    DecodePlan lost = other.plan(server.engine);
    server.engine.finish_compiles();
    const int begun = server.gate->begun;
    for (int i = 0; i < 2; ++i)
        check_refused(ErrorCode::kCompileFailed, {lost.kernel_key().c_str(), "background", "prepare()"},
                      [&] { server.engine.launch(lost, other.inputs.tensors); });
    CHECK(server.gate->begun == begun);
    server.gate->refuse = false;
    server.engine.prepare(lost);
    CHECK(other.launch_fault(server.engine, lost) == "");
}

TEST_CASE("serving: sealed, a miss is a warning or is served by the nearest kernel, at planning or at the first call") {
    SmallProblem small, other(0);
    Server server;
    Engine& engine = server.engine;
    DecodePlan prepared = small.plan(engine, kSmall), early = small.plan(engine), foreign = other.plan(engine);
    engine.prepare(prepared);
    SUBCASE("warn") {
        engine.seal(SealPolicy::warn);
        LogCapture capture;
        CHECK(small.launch_fault(engine, early) == "");
        CHECK(capture.warnings().size() == 1);
        CHECK(capture.mentions("prepare_keys({\"" + early.kernel_key() + "\"})"));
        CHECK(engine.stats().compiles_after_seal == 1);
        CHECK(engine.stats().misses_after_seal == 1);
    }
    SUBCASE("nearest") {
        engine.seal(SealPolicy::nearest);
        const std::string wanted = early.kernel_key();
        CHECK(small.launch_fault(engine, early) == "");  // planned before, for a kernel that never came
        CHECK(early.kernel_key() == prepared.kernel_key());
        Forest longer = small.which.forest;
        DecodePlan late = small.plan(engine);
        CHECK(late.kernel_key() == prepared.kernel_key());
        CHECK(small.launch_fault(engine, late) == "");
        late.update(longer);
        CHECK(small.launch_fault(engine, late) == "");
        check_refused(ErrorCode::kNotPrepared, {"sealed", foreign.kernel_key().c_str(), "stand in"},
                      [&] { engine.launch(foreign, other.inputs.tensors); });
        CHECK(engine.stats().misses_after_seal == 3);
        CHECK(engine.stats().compiles_after_seal == 0);
        CHECK(engine.stats().compiles == 1);
    }
}

TEST_CASE("serving: while a stream captures, a miss is refused before anything is touched") {
    Server server({.compile = CompilePolicy::background});
    Engine& engine = server.engine;
    auto& setup = engine.impl().service->setup;
    const auto memory = std::make_shared<CapturingMemory>(setup.memory);
    setup.memory = memory;
    SmallProblem small;
    server.gate->open(false);
    DecodePlan plan = small.plan(engine, kSmall);
    check_refused(ErrorCode::kNotPrepared, {"capturing", "not prepared"},
                  [&] { engine.launch(plan, small.inputs.tensors, CapturingMemory::kCapturing); });
    CHECK(memory->touched == 0);
    server.gate->open();
    CHECK(small.launch_fault(engine, plan) == "");
    engine.finish_compiles();
    server.gate->open(false);

    DecodePlan wide = small.plan(engine);  // served by the stand-in, and captured so
    engine.upload(wide);
    engine.launch(wide, small.inputs.tensors, CapturingMemory::kCapturing);
    CHECK(small.fault() == "");
    server.gate->open();
    engine.finish_compiles();
    wide.update(small.which.forest);
    CHECK(wide.kernel_key() == plan.kernel_key());
    CHECK(engine.stats().switches == 0);
}

TEST_CASE("serving: threads that plan, prepare and launch at once, engines of several targets in one process") {
    TempDir dir;
    Server server({.compile = CompilePolicy::background});
    Engine offline({.target = "sm_80", .cache_dir = dir.path(), .compile_only = true}), again(on("host", dir.path()));
    std::atomic<int> bad{0};
    {
        std::vector<std::jthread> threads;
        for (int t = 0; t < 4; ++t) {
            threads.emplace_back([&, t] {
                SmallProblem small(t % 2 ? 16 : 0);
                for (int i = 0; i < 8; ++i) {
                    DecodePlan plan = small.plan(server.engine, i % 3 ? DecodeConfig{} : kSmall);
                    if (i % 4 == 0) server.engine.prepare(plan);
                    bad += !small.launch_fault(server.engine, plan).empty();
                    plan.update(small.which.forest);
                    bad += !small.launch_fault(server.engine, plan).empty();
                    bad += offline.plan_decode(small.which.problem(), small.which.forest).kernel_key().ends_with("/sm_80") ? 0 : 1;
                    static_cast<void>(metrics());
                }
                DecodePlan other = small.plan(again);
                bad += !small.launch_fault(again, other).empty();
            });
        }
    }
    CHECK(bad == 0);
    server.engine.finish_compiles();
    CHECK(server.engine.stats().launches == 64);
    CHECK(server.engine.stats().compiles == 4);
}

TEST_CASE("serving: metrics are Prometheus text with the counters of every engine") {
    Server server;
    SmallProblem small;
    DecodePlan plan = small.plan(server.engine);
    for (int i = 0; i < 3; ++i) CHECK(small.launch_fault(server.engine, plan) == "");
    server.engine.seal();
    const std::string text = "\n" + server.engine.metrics_text();
    CHECK(metric(text, "sapwood_launches_total") == 3);
    CHECK(metric(text, "sapwood_compiles_total") == 1);
    CHECK(metric(text, "sapwood_compile_milliseconds_total") > 0);
    CHECK(metric(text, "sapwood_compiles_after_seal_total") == 0);
    CHECK(metric(text, "sapwood_sealed") == 1);
    CHECK(text.find(",target=\"host\",kernel=\"" + plan.kernel_key() + "\"} 3\n") != std::string::npos);
    Engine other(on_host());
    const std::string all = metrics();
    std::size_t samples = 0, heads = 0;
    for (std::size_t at = 0; (at = all.find("\nsapwood_launches_total{", at)) != std::string::npos; ++at) ++samples;
    for (std::size_t at = 0; (at = all.find("# TYPE sapwood_launches_total", at)) != std::string::npos; ++at) ++heads;
    CHECK(samples == 2);
    CHECK(heads == 1);
}

TEST_CASE("serving: a process may fork before the first use, and after it") {
    TempDir dir;
    SmallProblem small;
    Engine unused(on("host", dir.path() / "cache"));
    CHECK(in_child([&]() -> std::string {
              DecodePlan plan = small.plan(unused);
              return small.launch_fault(unused, plan);
          }) == "");
    Server server({.compile = CompilePolicy::background});
    Engine& engine = server.engine;
    DecodePlan plan = small.plan(engine, kSmall);
    engine.prepare(plan);
    CHECK(small.launch_fault(engine, plan) == "");
    server.gate->open(false);
    DecodePlan wide = small.plan(engine);  // a thread of the parent is now compiling, and holds what it holds
    CHECK(in_child([&]() -> std::string {
              if (const std::string fault = small.launch_fault(engine, plan); !fault.empty()) return "parent's plan: " + fault;
              server.gate->open();
              SmallProblem mine;
              DecodePlan fresh = mine.plan(engine, kSmall);
              if (const std::string fault = mine.launch_fault(engine, fresh); !fault.empty()) return "own plan: " + fault;
              Engine own(on("host", dir.path() / "cache"));
              DecodePlan third = mine.plan(own);
              return mine.launch_fault(own, third);
          }) == "");
    CHECK(small.launch_fault(engine, wide) == "");
}
