// SPDX-License-Identifier: Apache-2.0
// Calls over packs in traces, in the warm-up's list of kernels, and under a tuning database, as servers and trainers meet them.
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <fstream>

#include "engine/engine_config.h"
#include "engine/traced_pack.h"
#include "engine/tune_subject.h"
#include "engine/tuning.h"
#include "plan/packed_tiles.h"
#include "sapwood/sapwood.h"
#include "support/cache_fixture.h"
#include "support/half.h"
#include "support/inputs.h"
#include "tune/config_fields.h"
#include "tune/epoch.h"
#include "tune/packed_candidates.h"
#include "tune/record_store.h"

using namespace sapwood;
namespace fs = std::filesystem;

namespace {

const PackedProblem kProblem = {.q_heads = 2, .kv_heads = 1, .head_dim = 64};

Pack small_pack() {
    const std::vector<Segment> segments = {{-1, 40}, {0, 30}, {0, 25}};
    return Pack::from_segments(segments);
}

/// Host tensors of a pack; every element of the inputs is finite.
struct Tensors {
    support::HalfBuffer q, k, v, out;
    std::vector<float> lse;
    PackedTensors all;
    explicit Tensors(const Pack& pack)
        : q(pack.rows() * 128), k(pack.keys() * 64), v(k.size()), out(q.size()), lse(static_cast<std::size_t>(pack.rows()) * 2) {
        support::fill_values(DType::bf16, 1, support::Stream::q, 0, q.span());
        support::fill_values(DType::bf16, 1, support::Stream::k, 0, k.span());
        support::fill_values(DType::bf16, 1, support::Stream::v, 0, v.span());
        all = {.q = q.data(), .k = k.data(), .v = v.data(), .out = out.data(), .lse = lse.data()};
    }
};

std::vector<std::string> sorted(std::vector<std::string> keys) {
    std::sort(keys.begin(), keys.end());
    return keys;
}

}  // namespace

TEST_CASE("packs in a trace: shapes, sizes and counts of both passes; the warm-up finds their kernels") {
    test::TempDir dir;
    const fs::path file = dir.path() / "t.jsonl";
    const Pack pack = small_pack();
    std::vector<std::string> used, ordered;
    {
        Engine engine({.target = "host", .cache_dir = SAPWOOD_BINARY_DIR "/test-cache", .trace = file});
        PackedPlan plan = engine.plan_packed(kProblem, pack);
        engine.plan_packed(kProblem, pack);
        Tensors tensors(pack);
        for (int i = 0; i < 3; ++i) engine.launch(plan, tensors.all);
        const PackedBackwardPlan backward = engine.plan_packed_backward(kProblem, pack);
        used = backward.kernel_keys();
        ordered = engine.plan_packed_backward(kProblem, pack, {.deterministic = true}).kernel_keys();
        for (const std::string& key : ordered)  // what goes over the rows is the same
            if (std::find(used.begin(), used.end(), key) == used.end()) used.push_back(key);
        used.push_back(plan.kernel_key());
        PackedProblem capped = kProblem;
        capped.softcap = 20;
        used.push_back(engine.plan_packed(capped, pack).kernel_key());
        // A decode problem in the same file is its other reader's.
        engine.plan_decode({.q_heads = 2, .kv_heads = 1, .head_dim = 64}, Forest::from_nodes(std::vector<Node>{{-1, 10, 0}}));
    }
    CHECK(read_trace(file).size() == 1);
    const auto records = read_traced_packs(file);
    REQUIRE(records.size() == 4);
    std::uint64_t planned = 0, launched = 0;
    for (const TracedPack& record : records) {
        CHECK((record.rows == 95 && record.tokens == 95 && record.visible_pairs == pack.visible_pairs()));
        CHECK(record.runs == static_cast<std::int64_t>(pack.runs().size()));
        CHECK(record.target == "host");
        CHECK(record.keys.size() == (record.backward ? 3 : 1));
        planned += record.planned, launched += record.launched;
    }
    CHECK((planned == 5 && launched == 3));

    Engine here({.target = "host", .disk_cache = false, .compile_only = true});
    const KeyList found = keys_of(here, records);
    CHECK(found.faults.empty());
    CHECK(found.keys == sorted(used));
    // For an SM that the trace is not of: what its planner chooses, nothing recorded; what an SM has not is said.
    Engine there({.target = "sm_80", .disk_cache = false, .compile_only = true});
    const auto fixed = [](const std::string& key) { return key.find("/order1/") != std::string::npos; };
    const KeyList elsewhere = keys_of(there, records);
    for (const std::string& key : elsewhere.keys) CHECK(key.ends_with("/sm_80"));
    CHECK(elsewhere.faults.empty());
    CHECK(std::any_of(elsewhere.keys.begin(), elsewhere.keys.end(), fixed));
    Engine small({.target = "sm_86", .disk_cache = false, .compile_only = true});
    std::vector<TracedPack> wide = records;
    for (TracedPack& record : wide) record.problem.head_dim = 256, record.problem.head_dim_v = 96;
    const KeyList lacking = keys_of(small, wide);
    REQUIRE(lacking.faults.size() == 1);
    CHECK(lacking.faults[0].find("no packed backward kernel for head dims 256 and 96 on sm_86") != std::string::npos);
    Engine hopper({.target = "sm_90a", .disk_cache = false, .compile_only = true});
    const KeyList same = keys_of(hopper, records);
    CHECK(same.faults.empty());
    CHECK(std::any_of(ordered.begin(), ordered.end(), fixed));
    CHECK(std::any_of(same.keys.begin(), same.keys.end(), fixed));

    std::ofstream(file, std::ios::app) << R"({"pack":{"q_heads":2},"pass":"sideways"})"
                                       << "\n";
    CHECK_THROWS_WITH_AS(read_traced_packs(file), doctest::Contains("line 7"), Error);
}

TEST_CASE("packs in an engine configuration: kernels of both passes; a trainer may decode nothing") {
    test::TempDir dir;
    const fs::path file = dir.path() / "e.json";
    const auto configured = [&](const std::string& fields) {
        std::ofstream(file) << R"({"schema":1,"kind":"engine","models":[{"q_heads":32,"kv_heads":8,"head_dim":128}],)" << fields
                            << "}";
        return read_engine_config(file);
    };
    Engine engine({.target = "sm_90a", .disk_cache = false, .compile_only = true, .tune = "off"});
    const std::string packs = R"("packs":{"tokens":{"min":1024,"max":65536},"segment":{"min":64,"max":4096}})";
    const EngineConfig trainer = configured(packs);
    const KeyList keys = keys_of(engine, trainer);
    CHECK(keys.faults.empty());
    const std::vector<Segment> one = {{-1, 4096}};
    const PackedProblem problem = {.q_heads = 32, .kv_heads = 8, .head_dim = 128};
    std::vector<std::string> wanted = engine.plan_packed_backward(problem, Pack::from_segments(one)).kernel_keys();
    wanted.push_back(engine.plan_packed(problem, Pack::from_segments(one)).kernel_key());
    CHECK(keys.keys == sorted(wanted));

    const KeyList both = keys_of(engine, configured(R"("batch":{"min":1,"max":2},"context":{"min":128,"max":256},)" + packs));
    CHECK(both.keys.size() > keys.keys.size());
    for (const std::string& key : keys.keys) CHECK(std::find(both.keys.begin(), both.keys.end(), key) != both.keys.end());
    // Head dims that have no backward kernel are said, with the reason, and do not hide the forward one.
    std::ofstream(file) << R"({"schema":1,"kind":"engine","models":[{"q_heads":8,"kv_heads":8,"head_dim":96,"head_dim_v":256}],)"
                        << packs << "}";
    Engine small({.target = "sm_120a", .disk_cache = false, .compile_only = true, .tune = "off"});
    const KeyList wide = keys_of(small, read_engine_config(file));
    CHECK(wide.keys.size() == 1);
    REQUIRE(wide.faults.size() == 1);
    CHECK(wide.faults[0].find("backward, bf16 8/8 heads of 96") != std::string::npos);

    CHECK_THROWS_WITH_AS(configured(R"("packs":{"tokens":{"min":8,"max":4}})"), doctest::Contains("tokens from 8 to 4"), Error);
    CHECK_THROWS_WITH_AS(configured(R"("packs":{"tokens":{"min":8,"max":9},"passes":"up"})"), doctest::Contains("\"up\""), Error);
    CHECK_THROWS_WITH_AS(configured(R"("name":"nothing to do")"), doctest::Contains("batch"), Error);
}

TEST_CASE("packs under a tuning database: a plan takes what it says, and says so") {
    test::TempDir dir;
    Engine bare({.target = "sm_90a", .disk_cache = false, .compile_only = true, .tune = "off"});
    const PackedProblem problem = {.q_heads = 32, .kv_heads = 8, .head_dim = 128};
    const std::vector<Segment> segments = {{-1, 4000}, {0, 1000}, {0, 1000}};
    const Pack pack = Pack::from_segments(segments);
    CHECK(bare.plan_packed(problem, pack).info().tuned == TuneMatch::none);
    const PackedConfig by_default = bare.plan_packed(problem, pack).info().config;
    const DecodeConfig best = {.mainloop = Mainloop::wgmma, .warps = 8, .producers = 4, .block_kv = 64, .stages = 2, .blocks = 1};
    REQUIRE(!tune::same_config(tune::as_decode(by_default), best));

    const PackedProblem whole = complete(problem);
    const tune::Sizes sizes = tune::sizes_of(whole, pack);
    tune::Record record = {.bucket = tune::bucket_of(whole, sizes), .policy = TunePolicy{}.name, .code = tune::code_digest()};
    TuneReport report;
    report.default_config = tune::as_decode(by_default);
    report.candidates = {{.config = report.default_config, .median_us = 20, .samples = 30},
                         {.config = best, .median_us = 10, .samples = 30}};
    tune::add(record, "case", sizes, report, {.date = "d", .sm = 90});
    tune::RecordStore(dir.path()).save(tune::environment_of(facts_of(setup_of(bare)), {}), record, {});

    Engine engine({.target = "sm_90a", .disk_cache = false, .compile_only = true, .tune = "read", .tune_dir = dir.path()});
    const PackedPlan tuned = engine.plan_packed(problem, pack);
    CHECK(tuned.info().tuned == TuneMatch::exact);
    CHECK(tuned.kernel_key().find("/wgmma/w8/p4/kv64/s2/b1/") != std::string::npos);
    CHECK(engine.plan_packed(problem, pack, by_default).info().tuned == TuneMatch::none);
    const std::vector<Segment> crumb = {{-1, 3}};
    CHECK(engine.plan_packed(problem, Pack::from_segments(crumb)).info().tuned == TuneMatch::fallback);
    const EngineStats stats = engine.stats();
    CHECK((stats.tune_exact == 1 && stats.tune_default == 1));
    // The warm-up asks the same database: it lists what the plans will want, and not the default alone.
    const TracedPack traced = {.problem = whole,
                               .target = "sm_80",
                               .rows = pack.rows(),
                               .tokens = pack.keys(),
                               .visible_pairs = pack.visible_pairs(),
                               .runs = static_cast<std::int64_t>(pack.runs().size())};
    CHECK(keys_of(engine, {&traced, 1}).keys == std::vector{tuned.kernel_key()});
}

TEST_CASE("packs as the tuner runs them: candidates give the default's result; tensors that cannot be compared are refused") {
    Engine engine({.target = "host", .cache_dir = SAPWOOD_BINARY_DIR "/test-cache"});
    const Pack pack = small_pack();
    Tensors tensors(pack);
    const PackedTensors sets[] = {tensors.all};
    const auto subject = packed_subject(engine, kProblem, pack, sets);
    const TuneResult result = subject->result();
    CHECK((result.rows == 95 && result.heads == 2 && result.dim == 64 && result.out == tensors.out.data()));
    std::vector<std::vector<float>> lses;
    for (const std::int32_t block_kv : {64, 32}) {
        std::fill(tensors.lse.begin(), tensors.lse.end(), std::nanf(""));
        auto prepared = subject->prepare({.mainloop = Mainloop::mma, .warps = 4, .block_kv = block_kv}, nullptr);
        CHECK(prepared.report.key.find("/kv" + std::to_string(block_kv) + "/") != std::string::npos);
        prepared.launch(0, nullptr);
        lses.push_back(tensors.lse);
    }
    for (std::size_t i = 0; i < lses[0].size(); ++i) CHECK(lses[1][i] == doctest::Approx(lses[0][i]).epsilon(1e-4));
    PackedTensors gaps[] = {tensors.all};
    gaps[0].out_head_stride = 72;
    CHECK_THROWS_WITH_AS(packed_subject(engine, kProblem, pack, gaps), doctest::Contains("densely packed"), Error);
    CHECK_THROWS_WITH_AS(packed_subject(engine, kProblem, pack, {}), doctest::Contains("at least one set"), Error);
}
