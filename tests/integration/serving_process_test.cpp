// SPDX-License-Identifier: Apache-2.0
// An engine among streams, threads, other engines and forked processes; and what its counters say.
#include <doctest/doctest.h>

#include <thread>

#include "integration/serving_fixture.h"

using namespace sapwood;
using namespace sapwood::test;

namespace {

double metric(const std::string& text, const std::string& name) {
    for (std::size_t at = 0; (at = text.find("\n" + name, at)) != std::string::npos; ++at) {
        const std::size_t space = text.find(' ', at + 1 + name.size());
        if (text[at + 1 + name.size()] == '{' || text[at + 1 + name.size()] == ',') return std::stod(text.substr(space));
    }
    return -1;
}

}  // namespace

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
