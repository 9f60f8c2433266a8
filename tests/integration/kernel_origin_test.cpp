// SPDX-License-Identifier: Apache-2.0
// Where an engine's kernels come from: compiler, memory, disk; beside other threads and processes; with a disk or a compiler that
// fails.
#include <doctest/doctest.h>
#include <sys/stat.h>

#include <thread>

#include "integration/small_problem.h"
#include "jit/disk_cache.h"
#include "support/cache_fixture.h"

using namespace sapwood;
using namespace sapwood::test;
namespace fs = std::filesystem;

TEST_CASE("engine: a kernel is compiled, then found in memory, then on disk, and the counts say so") {
    TempDir dir;
    const fs::path cache = dir.path() / "cache";
    SmallProblem small;
    std::vector<std::byte> bytes;
    {
        Engine engine(on("host", cache));
        DecodePlan plan = small.plan(engine), again = small.plan(engine);
        const KernelReport report = engine.prepare(plan);
        CHECK(report.origin == "compiled");
        CHECK(report.key == plan.kernel_key());
        CHECK(report.compile_ms > 0);
        CHECK(report.prepare_ms >= report.compile_ms);
        CHECK(engine.prepare(plan).origin == "memory");
        CHECK(engine.prepare(again).origin == "memory");
        CHECK(small.launch_fault(engine, plan) == "");
        CHECK(small.launch_fault(engine, plan) == "");
        bytes = engine.binary(plan);
        const EngineStats stats = engine.stats();
        CHECK(stats.compiles == 1);
        CHECK(stats.compile_ms > 0);
        CHECK(stats.disk_hits == 0);
        CHECK(stats.launches == 2);
        CHECK(engine.describe_cache() == cache.string());
        CHECK(engine.source(plan).find("kHeadDim = 64") != std::string::npos);
    }
    Engine engine(on("host", cache));
    DecodePlan plan = small.plan(engine);
    CHECK(engine.prepare(plan).origin == "disk");
    CHECK(engine.stats().compiles == 0);
    CHECK(engine.stats().disk_hits == 1);
    CHECK(engine.binary(plan) == bytes);
    CHECK(small.launch_fault(engine, plan) == "");
    Engine without({.target = "host", .cache_dir = cache, .disk_cache = false});
    DecodePlan third = small.plan(without);
    CHECK(without.prepare(third).origin == "compiled");
    CHECK(without.describe_cache().starts_with("memory only"));
}

TEST_CASE("engine: two threads that need one kernel compile it once") {
    TempDir dir;
    Engine engine(on("host", dir.path() / "cache"));
    std::string faults[2], origins[2];
    {
        std::vector<std::jthread> threads;
        for (int i = 0; i < 2; ++i) {
            threads.emplace_back([&, i] {
                SmallProblem small;
                DecodePlan plan = small.plan(engine);
                origins[i] = engine.prepare(plan).origin;
                for (int n = 0; n < 20 && faults[i].empty(); ++n) faults[i] = small.launch_fault(engine, plan);
            });
        }
    }
    CHECK(faults[0] == "");
    CHECK(faults[1] == "");
    CHECK((origins[0] == "compiled") + (origins[1] == "compiled") == 1);
    CHECK(engine.stats().compiles == 1);
    CHECK(engine.stats().launches == 40);
}

TEST_CASE("engine: sixteen processes, cold, on one cache: all right, few compiles, a cache that verifies") {
    TempDir dir;
    const fs::path cache = dir.path() / "cache";
    std::vector<pid_t> children;
    for (int i = 0; i < 16; ++i) {
        children.push_back(start_child([&] {
            SmallProblem small;
            Engine engine(on("host", cache));
            DecodePlan plan = small.plan(engine);
            if (!small.launch_fault(engine, plan).empty()) return 50;
            return static_cast<int>(engine.stats().compiles);
        }));
    }
    int compiles = 0;
    for (const pid_t child : children) {
        const int status = finish_child(child);
        CHECK(status <= 1);
        compiles += status;
    }
    CHECK(compiles >= 1);
    CHECK(compiles <= 4);
    const auto entries = jit::DiskCache(cache).list(/*verify=*/true);
    REQUIRE(entries.size() == 1);
    CHECK(entries[0].fault == "");
}

TEST_CASE("engine: a damaged entry is compiled again, without a word") {
    TempDir dir;
    const fs::path cache = dir.path() / "cache";
    SmallProblem small;
    const auto origin = [&] {
        Engine engine(on("host", cache));
        DecodePlan plan = small.plan(engine);
        const std::string from = engine.prepare(plan).origin;
        CHECK(small.launch_fault(engine, plan) == "");
        return from;
    };
    CHECK(origin() == "compiled");
    const auto entries = jit::DiskCache(cache).list(false);
    REQUIRE(entries.size() == 1);
    const auto good = read_bytes(entries[0].path);
    LogCapture capture;
    for (const std::size_t at : {std::size_t{20}, good.size() / 2, good.size() - 1}) {
        CAPTURE(at);
        auto bytes = good;
        bytes[at] ^= std::byte{8};
        write_bytes(entries[0].path, bytes);
        CHECK(origin() == "compiled");
    }
    write_bytes(entries[0].path, std::span(good).first(good.size() / 3));
    CHECK(origin() == "compiled");
    CHECK(origin() == "disk");
    CHECK(capture.warnings().empty());
}

TEST_CASE("engine: a cache directory that cannot be written costs one warning, not the result") {
    TempDir dir;
    const fs::path cache = dir.path() / "cache";
    fs::create_directory(cache);
    fs::permissions(dir.path(), fs::perms::all);
    CHECK(in_child([&]() -> std::string {
              constexpr uid_t kNobody = 65534;
              fs::permissions(cache, fs::perms::owner_read | fs::perms::owner_exec);
              if (::geteuid() == 0) {  // to whom permissions mean nothing
                  SAPWOOD_NEED(::chown(cache.c_str(), kNobody, kNobody) == 0);
                  SAPWOOD_NEED(::setgid(kNobody) == 0);
                  SAPWOOD_NEED(::setuid(kNobody) == 0);
              }
              LogCapture capture;
              for (const int page_size : {16, 0}) {
                  SmallProblem small(page_size);
                  Engine engine(on("host", cache));
                  DecodePlan plan = small.plan(engine);
                  SAPWOOD_NEED(engine.prepare(plan).origin == "compiled");
                  SAPWOOD_NEED(small.launch_fault(engine, plan).empty());
                  SAPWOOD_NEED(engine.describe_cache().find(cache.string()) != std::string::npos);
              }
              SAPWOOD_NEED(capture.warnings().size() == 1);
              SAPWOOD_NEED(capture.mentions(cache.string()));
              return {};
          }) == "");
}

TEST_CASE("engine: a warm cache needs no compiler; a cold one says what is missing") {
    TempDir dir;
    const fs::path cache = dir.path() / "cache";
    SmallProblem small, other(0);
    std::string target;
    SUBCASE("host") { target = "host"; }
    SUBCASE("NVRTC") {
        target = "sm_90a";
        if (!have_nvrtc()) return;
    }
    {
        Engine engine(on(target, cache));
        DecodePlan plan = small.plan(engine);
        CHECK(engine.prepare(plan).origin == "compiled");
    }
    const ScopedEnv nvrtc("SAPWOOD_NVRTC", "/nowhere/libnvrtc.so.13"), cxx("CXX", "/nowhere/c++"), path("PATH", "/nowhere");
    LogCapture capture;
    Engine engine(on(target, cache));
    DecodePlan plan = small.plan(engine), cold = other.plan(engine);
    const KernelReport report = engine.prepare(plan);
    CHECK(report.origin == "disk");
    CHECK(!report.compiler.empty());
    if (target == "host") CHECK(small.launch_fault(engine, plan) == "");
    check_refused(ErrorCode::kNoCompiler, {cold.kernel_key().c_str(), cache.c_str(), target == "host" ? "CXX" : "SAPWOOD_NVRTC"},
                  [&] { engine.prepare(cold); });
    CHECK(engine.stats().compiles == 0);
    CHECK(engine.stats().disk_hits == 1);
    CHECK(capture.warnings().empty());
}
