// SPDX-License-Identifier: Apache-2.0
// Calls over packs in traces, in the warm-up's list of kernels, and under a tuning database, as servers and trainers meet them.
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <fstream>

#include "engine/engine_config.h"
#include "engine/traced_pack.h"
#include "engine/tune_subject.h"
#include "engine/tuning.h"
#include "plan/packed_tiles.h"
#include "sapwood/sapwood.h"
#include "support/cache_fixture.h"
#include "support/compare.h"
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

/// A record in which `best` takes half of the default's time.
void record_twice_as_fast(const fs::path& db, Engine& engine, const tune::PackedPass& pass, const Pack& pack,
                          const DecodeConfig& best) {
    const tune::DeviceFacts device = facts_of(setup_of(engine));
    const tune::Sizes sizes = tune::sizes_of(pass.problem(), pack);
    tune::Record record = {
        .bucket = tune::bucket_of(pass.problem(), sizes, pass.family()), .policy = TunePolicy{}.name, .code = tune::code_digest()};
    TuneReport report;
    report.default_config = pass.by_default({}, device.limits);
    report.candidates = {{.config = report.default_config, .median_us = 20, .samples = 30},
                         {.config = best, .median_us = 10, .samples = 30}};
    tune::add(record, "case", sizes, report, {.date = "d", .sm = 90});
    tune::RecordStore(db).save(tune::environment_of(device, {}), record, {});
}

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

    record_twice_as_fast(dir.path(), bare, {Family::packed_forward, complete(problem)}, pack, best);

    Engine engine({.target = "sm_90a", .disk_cache = false, .compile_only = true, .tune = "read", .tune_dir = dir.path()});
    const PackedPlan tuned = engine.plan_packed(problem, pack);
    CHECK(tuned.info().tuned == TuneMatch::exact);
    CHECK(tuned.kernel_key().find("/wgmma/w8/p4/kv64/s2/b1/") != std::string::npos);
    CHECK(engine.plan_packed(problem, pack, by_default).info().tuned == TuneMatch::none);
    // Heads that are asked for are not what was measured.
    CHECK(engine.plan_packed(problem, pack, {.heads = 1}).info().tuned == TuneMatch::none);
    const std::vector<Segment> crumb = {{-1, 3}};
    CHECK(engine.plan_packed(problem, Pack::from_segments(crumb)).info().tuned == TuneMatch::fallback);
    const EngineStats stats = engine.stats();
    CHECK((stats.tune_exact == 1 && stats.tune_default == 1));
    // The warm-up asks the same database: it lists what the plans will want, and not the default alone.
    const TracedPack traced = {.problem = complete(problem),
                               .target = "sm_80",
                               .rows = pack.rows(),
                               .tokens = pack.keys(),
                               .visible_pairs = pack.visible_pairs(),
                               .runs = static_cast<std::int64_t>(pack.runs().size())};
    CHECK(keys_of(engine, {&traced, 1}).keys == std::vector{tuned.kernel_key()});
}

TEST_CASE("packs under a tuning database: a backward plan takes kernel and heads from it, a deterministic one the kernel alone") {
    test::TempDir dir;
    Engine bare({.target = "sm_90a", .disk_cache = false, .compile_only = true, .tune = "off"});
    const PackedProblem problem = {.q_heads = 32, .kv_heads = 8, .head_dim = 128};
    const Pack pack = Pack::from_segments(std::vector<Segment>{{-1, 4000}, {0, 1000}, {0, 1000}});
    CHECK(bare.plan_packed_backward(problem, pack).info().config.mainloop == Mainloop::wgmma);
    const DecodeConfig best = {.mainloop = Mainloop::mma, .warps = 8, .block_kv = 64, .stages = 2, .blocks = 1, .split = 2};
    record_twice_as_fast(dir.path(), bare, {Family::packed_backward, complete(problem)}, pack, best);

    Engine engine({.target = "sm_90a", .disk_cache = false, .compile_only = true, .tune = "read", .tune_dir = dir.path()});
    const PackedBackwardPlan tuned = engine.plan_packed_backward(problem, pack);
    CHECK(tuned.info().tuned == TuneMatch::exact);
    CHECK((tuned.info().config.mainloop == Mainloop::mma && tuned.info().config.block_kv == 64 && tuned.info().config.heads == 2));
    const PackedBackwardInfo ordered = engine.plan_packed_backward(problem, pack, {.deterministic = true}).info();
    CHECK((ordered.tuned == TuneMatch::exact && ordered.config.block_kv == 64 && ordered.config.heads == 0));
    // The forward pass over the same pack has no record.
    CHECK(engine.plan_packed(problem, pack).info().tuned == TuneMatch::fallback);
    const TracedPack traced = {.problem = complete(problem),
                               .backward = true,
                               .target = "sm_80",
                               .rows = pack.rows(),
                               .tokens = pack.keys(),
                               .visible_pairs = pack.visible_pairs(),
                               .runs = static_cast<std::int64_t>(pack.runs().size())};
    CHECK(keys_of(engine, {&traced, 1}).keys == sorted(tuned.kernel_keys()));
}

TEST_CASE("packs as the tuner runs them: candidates give the default's result; tensors that cannot be compared are refused") {
    Engine engine({.target = "host", .cache_dir = SAPWOOD_BINARY_DIR "/test-cache"});
    const Pack pack = small_pack();
    Tensors tensors(pack);
    const PackedTensors sets[] = {tensors.all};
    const auto subject = packed_subject(engine, kProblem, pack, sets);
    const TuneResult result = subject->result();
    REQUIRE(result.tensors.size() == 1);
    CHECK((result.tensors[0].rows == 95 && result.tensors[0].row == 2 * 64 && result.tensors[0].data == tensors.out.data()));
    CHECK(result.lses == 95 * 2);
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

TEST_CASE("packs as the tuner runs them: gradients of a candidate are the default's") {
    Engine engine({.target = "host", .cache_dir = SAPWOOD_BINARY_DIR "/test-cache"});
    const Pack pack = small_pack();
    Tensors tensors(pack);
    PackedPlan forward = engine.plan_packed(kProblem, pack);
    engine.launch(forward, tensors.all);
    support::HalfBuffer dq(tensors.q.size()), dk(tensors.k.size()), dv(tensors.v.size());
    const PackedTensors& t = tensors.all;
    const PackedGradients sets[] = {
        {.q = t.q, .k = t.k, .v = t.v, .out = t.out, .dout = t.q, .lse = t.lse, .dq = dq.data(), .dk = dk.data(), .dv = dv.data()}};
    const auto subject = backward_subject(engine, kProblem, pack, sets);
    const TuneResult result = subject->result();
    REQUIRE(result.tensors.size() == 3);
    CHECK((result.tensors[0].data == dq.data() && result.tensors[0].rows == 95 && result.tensors[0].row == 2 * 64));
    CHECK((result.tensors[2].data == dv.data() && result.tensors[2].rows == 95 && result.tensors[2].row == 64));
    std::vector<std::vector<double>> found;
    for (const std::int32_t split : {0, 2}) {  // the group's two heads in one item, and in two
        for (support::HalfBuffer* gradient : {&dq, &dk, &dv}) std::memset(gradient->data(), 0xff, gradient->bytes());
        auto prepared = subject->prepare(
            {.mainloop = Mainloop::mma, .warps = 8, .block_kv = 64, .stages = 1, .blocks = 1, .split = split}, nullptr);
        CHECK(prepared.report.key.starts_with("packed_backward/"));
        prepared.launch(0, nullptr);
        std::vector<double>& all = found.emplace_back();
        for (support::HalfBuffer* gradient : {&dq, &dk, &dv})
            for (std::int64_t i = 0; i < gradient->size(); ++i)
                all.push_back(static_cast<double>(support::widen(DType::bf16, gradient->data()[i])));
    }
    CHECK(support::relative_error(found[1], found[0]) < 4e-3);
    PackedGradients gaps[] = {sets[0]};
    gaps[0].dk_head_stride = 72;
    CHECK_THROWS_WITH_AS(backward_subject(engine, kProblem, pack, gaps), doctest::Contains("densely packed"), Error);
}
