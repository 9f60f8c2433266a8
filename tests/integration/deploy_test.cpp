// SPDX-License-Identifier: Apache-2.0
// Kernels made on one machine and used on another: bundles, keys of an engine configuration, traces.
#include <doctest/doctest.h>

#include <algorithm>
#include <fstream>
#include <set>

#include "engine/engine_config.h"
#include "engine/engine_impl.h"
#include "engine/pack.h"
#include "integration/small_problem.h"
#include "kernel/key_text.h"
#include "support/cache_fixture.h"

using namespace sapwood;
using namespace sapwood::test;
namespace fs = std::filesystem;

namespace {

/// What a machine without compilers and without a writable disk has.
struct BareMachine {
    ScopedEnv nvrtc{"SAPWOOD_NVRTC", "/nowhere/libnvrtc.so.13"}, cxx{"CXX", "/nowhere/c++"}, path{"PATH", "/nowhere"};
    ScopedEnv disk{"SAPWOOD_DISK_CACHE", "0"};
};

std::string traits_of(const DecodeProblem& problem) { return decode_key(problem, {}, "").to_string(); }

std::string digest_text(const fs::path& bundle) { return to_hex(jit::Bundle::open(bundle, nullptr)->digest()); }

}  // namespace

TEST_CASE("deploy: a bundle alone runs a kernel: no compiler, no disk; and says no to what it should not be") {
    TempDir dir;
    const fs::path file = dir.path() / "small.swb";
    SmallProblem small, other(0);
    jit::BundleContents contents = empty_bundle();
    {
        Engine engine(on_host());
        pack_kernel(contents, engine, parse_key(small.plan(engine).kernel_key()));
        contents.attachments["tune/x"] = payload_of("tuned");
        write_bytes(file, jit::encode_bundle(contents));
    }
    const BareMachine machine;
    LogCapture capture;
    const auto runs = [&](Engine& engine) {
        DecodePlan plan = small.plan(engine);
        CHECK(engine.prepare(plan).origin == "bundle");
        CHECK(small.launch_fault(engine, plan) == "");
        CHECK(engine.stats().bundle_hits == 1);
    };
    SUBCASE("by option, and by hand with its digest") {
        Engine by_option({.target = "host", .bundles = {file}}), by_hand({.target = "host"});
        runs(by_option);
        CHECK(by_hand.add_bundle(file, digest_text(file)));
        runs(by_hand);
        CHECK(by_hand.impl().service->attachments("tune/").at("tune/x") == payload_of("tuned"));
        CHECK(by_hand.impl().service->attachments("other/").empty());
        DecodePlan cold = other.plan(by_hand);
        check_refused(ErrorCode::kNoCompiler, {cold.kernel_key().c_str(), "1 bundles"}, [&] { by_hand.prepare(cold); });
        CHECK(capture.warnings().empty());
    }
    SUBCASE("by the search path, missing ones and empty names apart") {
        const std::string search = ":" + (dir.path() / "none.swb").string() + "::" + file.string();
        const ScopedEnv path("SAPWOOD_BUNDLE_PATH", search.c_str());
        Engine engine({.target = "host"}), again({.target = "host"});
        runs(engine);
        runs(again);
        CHECK(capture.warnings().size() == 1);
        CHECK(capture.mentions("none.swb is not used: No such file"));
    }
    SUBCASE("not the one that was pinned") {
        Engine engine({.target = "host"});
        std::string digest = digest_text(file);
        digest[0] = digest[0] == '0' ? '1' : '0';
        CHECK(!engine.add_bundle(file, digest));
        CHECK(!engine.add_bundle(file, "0x12"));
        CHECK(capture.warnings().size() == 2);
        DecodePlan plan = small.plan(engine);
        check_refused(ErrorCode::kNoCompiler, {}, [&] { engine.prepare(plan); });
    }
    SUBCASE("of other templates, cut short, flipped: one warning each, and the next source is asked") {
        contents.template_set[5] ^= 1;
        const fs::path foreign = dir.path() / "foreign.swb", cut = dir.path() / "cut.swb", flipped = dir.path() / "flipped.swb";
        write_bytes(foreign, jit::encode_bundle(contents));
        auto bytes = read_bytes(file);
        write_bytes(cut, std::span(bytes).first(bytes.size() / 2));
        bytes[bytes.size() / 2] ^= std::byte{16};
        write_bytes(flipped, bytes);
        Engine engine({.target = "host", .bundles = {foreign, cut, flipped, file}});
        runs(engine);
        Engine again({.target = "host", .bundles = {foreign, cut, flipped, file}});
        runs(again);
        CHECK(capture.warnings().size() == 3);
        CHECK(capture.mentions("Pack it again with this build"));
    }
}

TEST_CASE("deploy: a cache packs into the same bundle as the kernels themselves; what is not of these templates stays out") {
    TempDir dir;
    SmallProblem small;
    Engine engine(on("host", dir.path() / "cache"));
    DecodePlan plan = small.plan(engine);
    engine.prepare(plan);
    jit::BundleContents direct = empty_bundle(), cached = empty_bundle();
    pack_kernel(direct, engine, parse_key(plan.kernel_key()));
    jit::DiskCache cache(dir.path() / "cache");
    FakeCompiler compiler;
    cache.get_or_compile(request_for("x"), compiler);  // sound, but no key of ours
    CHECK(pack_cache(cached, cache, {}) == 1);
    CHECK(jit::encode_bundle(cached) == jit::encode_bundle(direct));
    jit::BundleContents none = empty_bundle();
    pack_cache(none, cache, {"sm_80"});
    CHECK(none.kernels.empty());
}

TEST_CASE("deploy: the keys of an engine configuration are those that its plans ask for, with every fault named") {
    TempDir dir;
    const fs::path file = dir.path() / "engine.json";
    const auto read = [&](const std::string& fields) {
        std::ofstream(file) << "{\"schema\": 1, \"kind\": \"engine\"" << fields << "}";
        return read_engine_config(file);
    };
    const std::string ranges = R"(, "batch": {"min": 1, "max": 6}, "context": {"min": 100, "max": 1000})";
    const EngineConfig config = read(ranges + R"(, "models": [{"q_heads": 32, "kv_heads": 8, "head_dim": 128}],
        "tensor_parallel": [1, 2, 16], "page_size": [0, 16], "configs": [{}, {"block_kv": 32}], "sharing": ["none", "tree"])");
    CHECK(config.batches == std::vector<std::int64_t>{1, 2, 4, 6});
    CHECK(config.contexts == std::vector<std::int64_t>{100, 128, 256, 512, 1000});
    CHECK(config.problems.size() == 6);
    Engine engine({.target = "sm_80", .cache_dir = dir.path(), .compile_only = true});
    const KeyList found = keys_of(engine, config);
    CHECK(found.faults.empty());
    CHECK(found.plans == 6 * 2 * 4 * 5 * 2);
    CHECK(found.keys.size() == 8);  // group 4 (twice) and 2, page 0 and 16, two tile shapes
    const Node nodes[] = {{-1, 700, 0}};
    const DecodeProblem asked = {.q_heads = 16, .kv_heads = 4, .head_dim = 128, .page_size = 16};
    const std::string key = engine.plan_decode(asked, Forest::from_nodes(nodes)).kernel_key();
    CHECK(std::find(found.keys.begin(), found.keys.end(), key) != found.keys.end());

    const KeyList none = keys_of(engine, read(ranges + R"(, "models": [{"q_heads": 32, "kv_heads": 8, "head_dim": 80}])"));
    CHECK(none.keys.empty());
    REQUIRE(none.faults.size() == 1);
    CHECK(none.faults[0].find("80") != std::string::npos);
    const auto refused = [&](const char* word, const std::string& fields) {
        check_refused(ErrorCode::kIo, {file.c_str(), word}, [&] { read(fields); });
    };
    refused("\"layers\" is not known", ranges + R"(, "models": [], "layers": 32)");
    refused("models", ranges);
    refused("fp8", ranges + R"(, "models": [{"q_heads": 32, "kv_heads": 8, "head_dim": 128}], "dtype": "fp8")");
    refused("fp8_e5m2", ranges + R"(, "models": [{"q_heads": 32, "kv_heads": 8, "head_dim": 128}], "kv_dtype": "fp8_e5m2")");
    refused(
        "from 6 to 1",
        R"(, "models": [{"q_heads": 1, "kv_heads": 1, "head_dim": 64}], "batch": {"min": 6, "max": 1}, "context": {"min": 1, "max": 1})");
    CHECK_NOTHROW(read_engine_config(SAPWOOD_SOURCE_DIR "/tools/examples/llama.json"));
}

TEST_CASE("deploy: a trace holds each distinct problem once, with counts and a forest like it; engines share the file") {
    TempDir dir;
    const fs::path file = dir.path() / "t-%p.jsonl", written = dir.path() / ("t-" + std::to_string(::getpid()) + ".jsonl");
    SmallProblem small, other(0);
    {
        EngineOptions options = on_host();
        options.trace = file;
        Engine engine(options), second(options);
        for (int i = 0; i < 3; ++i) {
            DecodePlan plan = small.plan(engine);
            for (int n = 0; n < 2; ++n) CHECK(small.launch_fault(engine, plan) == "");
        }
        DecodePlan plan = other.plan(second);
        CHECK(other.launch_fault(second, plan) == "");
        Forest longer = other.which.forest;
        longer.append_token_to_each_request();
        plan.update(longer);  // of a like size
        longer.append_tokens(0, 10'000);
        plan.update(longer);
        CHECK(!fs::exists(written));
        engine.flush_trace();
        CHECK(read_trace(written).size() == 3);
        CHECK(in_child([&]() -> std::string {
                  fs::remove(written);
                  DecodePlan inherited = small.plan(engine);
                  engine.flush_trace();  // the parent's: not written here
                  SAPWOOD_NEED(!fs::exists(written));
                  Engine mine(options);
                  DecodePlan own = small.plan(mine);
                  mine.flush_trace();
                  SAPWOOD_NEED(read_trace(dir.path() / ("t-" + std::to_string(::getpid()) + ".jsonl")).size() == 1);
                  return {};
              }) == "");
    }
    const auto records = read_trace(written);
    REQUIRE(records.size() == 3);
    std::uint64_t planned = 0, updated = 0, launched = 0;
    for (const TraceProblem& record : records) {
        planned += record.planned, updated += record.updated, launched += record.launched;
        const Forest forest = record.forest();
        CHECK(forest.live_requests() == record.requests);
        if (record.problem.page_size == 0) continue;
        CHECK(record.planned == 3);
        CHECK(record.launched == 6);
        CHECK(record.problem.head_dim == 64);
        CHECK(record.tokens == small.which.counts.used_tokens);
        CHECK(record.path_tokens == small.which.counts.path_tokens);
        CHECK(forest.total_tokens() == record.tokens);
        std::int64_t path = 0;
        for (std::int32_t r = 0; r < forest.request_capacity(); ++r) path += forest.path_tokens(r);
        CHECK(path == record.path_tokens);
    }
    CHECK(planned == 4);
    CHECK(updated == 2);
    CHECK(launched == 7);
    const auto cases = support::load_workload(written);  // as `run` and `bench` read it
    REQUIRE(cases.size() == 3);
    for (std::size_t i = 0; i < cases.size(); ++i) {
        const auto built = support::build_case(cases[i], cases[i].variants().front(), {.runs_without_pages = true});
        CHECK(built.counts.path_tokens == records[i].path_tokens);
        CHECK(traits_of(built.problem()) == traits_of(records[i].problem));
    }
    Engine offline({.target = "sm_90a", .cache_dir = dir.path(), .compile_only = true});
    CHECK(keys_of(offline, records).keys.size() == 2);  // of this target; two of the problems differ in size alone
    LogCapture capture;                                 // and once more, as a warning, when it ends
    Engine unwritable({.target = "host", .trace = "/nowhere/t.jsonl"});
    check_refused(ErrorCode::kIo, {"/nowhere/t.jsonl"}, [&] { unwritable.flush_trace(); });
}

TEST_CASE("deploy: a trace's tree is the forest's live part, alike leaves counted; a damaged trace names its line") {
    Forest forest =
        Forest::from_nodes(std::vector<Node>{{2, 5, 0}, {2, 5, 10}, {-1, 100, 20}, {2, 7, 200}, {0, 3, 300}, {2, 5, 400}},
                           std::vector<std::int32_t>{1, 5, 4, 4, 3, Forest::kNoNode});
    forest.add_node({-1, 50, 500});  // nobody sees it
    std::int32_t pathless = 0;
    const std::vector<TraceNode> tree = trace_tree(forest, &pathless);
    CHECK(pathless == 1);
    REQUIRE(tree.size() == 5);  // the root, two alike leaves, the longer one, an inner node, its leaf
    CHECK(tree[0].parent == -1);
    CHECK(tree[1].copies == 2);
    TraceProblem record;
    record.problem = {.q_heads = 4, .kv_heads = 2, .head_dim = 64, .head_dim_v = 64, .page_size = 16};
    record.target = "host", record.tree = tree, record.pathless = pathless;
    const Forest again = record.forest();
    const auto paths = [](const Forest& of) {
        std::multiset<std::int64_t> all;
        for (std::int32_t r = 0; r < of.request_capacity(); ++r) all.insert(of.path_tokens(r));
        return all;
    };
    CHECK(paths(again) == paths(forest));
    CHECK(again.total_tokens() == 125);

    TempDir dir;
    const fs::path file = dir.path() / "t.jsonl";
    const std::string text = write_trace({record, record}, 0);
    std::ofstream(file) << text;
    CHECK(read_trace(file).size() == 2);
    CHECK(read_trace(file)[0].problem.kv_dtype == KvDType::as_q);
    CHECK(text.find("kv_dtype") == std::string::npos);  // as those written before there was one
    TraceProblem bytes = record;
    bytes.problem.kv_dtype = KvDType::e4m3;
    std::ofstream(file) << write_trace({bytes}, 0);
    CHECK(read_trace(file)[0].problem.kv_dtype == KvDType::e4m3);
    for (const char* spoilt : {"{", "{\"problem\": 1}", ""}) {
        std::ofstream(file) << text << spoilt << "\n";
        check_refused(ErrorCode::kIo, {"line 4"}, [&] { read_trace(file); });
    }
    std::ofstream(file) << "";
    check_refused(ErrorCode::kIo, {"empty"}, [&] { read_trace(file); });
    std::ofstream(file) << "{\"sapwood_trace\": 2}\n";
    check_refused(ErrorCode::kIo, {"line 1", "schema 2"}, [&] { read_trace(file); });
}
