// SPDX-License-Identifier: Apache-2.0
// An engine in a server: prepared in parallel, sealed, compiling in the background.
#include <doctest/doctest.h>

#include <thread>

#include "integration/serving_fixture.h"

using namespace sapwood;
using namespace sapwood::test;

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
