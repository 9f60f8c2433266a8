// SPDX-License-Identifier: Apache-2.0
// Tuning as a user meets it: engines that read a database, and the `sapwood tune` command, both without a GPU.
#include <doctest/doctest.h>
#include <sys/wait.h>

#include <algorithm>
#include <array>
#include <cstdio>
#include <fstream>

#include "base/publish.h"
#include "cuda/nvrtc.h"
#include "engine/pack.h"
#include "engine/tuning.h"
#include "plan/tiles.h"
#include "sapwood/sapwood.h"
#include "sapwood/tune.h"
#include "support/cache_fixture.h"
#include "tune/config_fields.h"
#include "tune/epoch.h"
#include "tune/record_store.h"

using namespace sapwood;
namespace fs = std::filesystem;

namespace {

const DecodeProblem kProblem = {.q_heads = 32, .kv_heads = 8, .head_dim = 128, .page_size = 1};

Forest shared_prompt(int requests) {
    std::vector<Node> nodes = {{.parent = -1, .tokens = 2000}};
    for (int i = 0; i < requests; ++i) nodes.push_back({.parent = 0, .tokens = 100, .kv_begin = 2000 + 100 * i});
    return Forest::from_nodes(nodes);
}

/// Output of a shell command, and its exit code.
std::pair<std::string, int> shell(const std::string& command) {
    std::FILE* run = ::popen((command + " 2>&1").c_str(), "r");
    REQUIRE(run != nullptr);
    std::string printed;
    std::array<char, 4096> buffer;
    while (std::size_t got = std::fread(buffer.data(), 1, buffer.size(), run)) printed.append(buffer.data(), got);
    const int status = ::pclose(run);
    return {printed, WIFEXITED(status) ? WEXITSTATUS(status) : -1};
}

std::string text_of(const fs::path& path) {
    std::ifstream in(path);
    return std::string(std::istreambuf_iterator<char>(in), {});
}

}  // namespace

TEST_CASE("tune engine: a plan takes what the database says, and says so; off and fixed kernels do not ask it") {
    test::TempDir dir;
    const Forest forest = shared_prompt(64);
    Engine bare({.target = "sm_90a", .disk_cache = false, .compile_only = true, .tune = "off"});
    const DecodeConfig by_default = bare.plan_decode(kProblem, forest).info().config;
    CHECK(bare.plan_decode(kProblem, forest).info().tuned == TuneMatch::none);
    DecodeConfig best = by_default;
    best.stages = 4, best.split = 3, best.rows = 64;

    const tune::DeviceFacts facts = facts_of(setup_of(bare));
    const DecodeProblem problem = complete(kProblem);
    const ForestOrder order = order_of(forest);
    const tune::Sizes sizes = tune::sizes_of(problem, order);
    tune::Record record = {.bucket = tune::bucket_of(problem, sizes), .policy = TunePolicy{}.name, .code = tune::code_digest()};
    TuneReport report;
    report.default_config = by_default;
    report.candidates = {{.config = by_default, .median_us = 20, .samples = 30}, {.config = best, .median_us = 10, .samples = 30}};
    tune::add(record, "case", sizes, report, {.date = "d", .sm = 90});
    tune::RecordStore(dir.path()).save(tune::environment_of(facts, {}), record, {});

    Engine engine({.target = "sm_90a", .disk_cache = false, .compile_only = true, .tune = "read", .tune_dir = dir.path()});
    const auto planned = [&](const Forest& which, const DecodeConfig& config) {
        return engine.plan_decode(kProblem, which, config);
    };
    DecodePlan exact = planned(forest, {});
    CHECK(exact.info().tuned == TuneMatch::exact);
    CHECK(tune::same_config(exact.info().config, best));
    CHECK(exact.kernel_key().find("/s4/") != std::string::npos);
    CHECK(planned(shared_prompt(90), {}).info().tuned == TuneMatch::near_bucket);
    CHECK(planned(shared_prompt(2), {}).info().tuned == TuneMatch::fallback);
    CHECK(planned(forest, {.block_kv = 128}).info().tuned == TuneMatch::fallback);  // the record has none of 128
    CHECK(planned(forest, by_default).info().tuned == TuneMatch::none);
    const EngineStats stats = engine.stats();
    CHECK((stats.tune_exact == 1 && stats.tune_near == 1 && stats.tune_default == 2 && stats.tune_rejected == 0));
    CHECK(engine.metrics_text().find("match=\"near\"} 1\n") != std::string::npos);
    CHECK(engine.describe_tuning().find("digest") != std::string::npos);
    // The plan keeps its kernel while its forest grows: a captured graph stays valid.
    Forest grown = forest;
    DecodePlan plan = engine.plan_decode(kProblem, grown, {}, {.max_requests = 4096, .max_tiles = 100'000, .max_items = 100'000});
    for (int i = 0; i < 40; ++i) grown.append_token_to_each_request();
    grown.add_request(3);
    plan.update(grown);
    CHECK(tune::same_config(plan.info().config, best));
    CHECK(plan.info().tuned == TuneMatch::exact);

    // The same records in a bundle, as a server without a writable disk has them.
    jit::BundleContents contents = empty_bundle();
    tune::RecordStore(dir.path()).save_index(tune::environment_of(facts, {}), {});
    pack_tuning(contents, dir.path());
    const fs::path bundle = dir.path() / "tuned.swb";
    REQUIRE(replace_file(bundle, jit::encode_bundle(contents)));
    Engine served({.target = "sm_90a", .disk_cache = false, .bundles = {bundle}, .compile_only = true, .tune = "read"});
    const DecodePlan bundled = served.plan_decode(kProblem, forest);
    CHECK(bundled.info().tuned == TuneMatch::exact);
    CHECK(tune::same_config(bundled.info().config, best));

    CHECK_THROWS_WITH_AS(Engine({.target = "sm_90a", .tune = "sometimes"}), doctest::Contains("off or read"), Error);
    CHECK_THROWS_WITH_AS(tune_decode(engine, kProblem, forest, {}), doctest::Contains("no device"), Error);
}

#ifdef SAPWOOD_TOOL
TEST_CASE("tune tool: a candidate that kills its process is recorded, the rest goes on, a second run measures nothing") {
    test::TempDir dir;
    const std::string cases = " --workloads " SAPWOOD_SOURCE_DIR "/tests/workloads/fasttree.json --layout random ";
    const std::string tool = SAPWOOD_TOOL " tune --simulate --case 'FT[1-3]'" + cases;
    const fs::path db = dir.path() / "db";
    const auto [printed, code] = shell(tool + "--devices 0,1 --simulate-crash warps=4,block_kv=128 --db " + db.string());
    CHECK_MESSAGE(code == 0, printed);
    CHECK(printed.find("killed by signal 9") != std::string::npos);
    CHECK(printed.find("9 problems in") != std::string::npos);
    const tune::RecordStore store(db);
    const auto environments = store.environments();
    REQUIRE(environments.size() == 1);
    std::size_t crashed = 0, timed = 0;
    for (const tune::Record& record : store.records(environments[0])) {
        for (const tune::Measured& measured : record.measured) {
            CHECK(measured.timings.size() > 10);
            for (const tune::Timing& timing : measured.timings) {
                const bool deadly = tune::agrees(timing.candidate.config, {.warps = 4, .block_kv = 128});
                crashed += timing.candidate.status == "crash";
                timed += timing.candidate.measured();
                CHECK(deadly == (timing.candidate.status == "crash"));
            }
        }
    }
    CHECK((crashed >= 9 && timed > 90));
    // What is recorded is not run again, not even what crashed: the crash would show.
    const auto [again, again_code] = shell(tool + "--simulate-crash warps=4,block_kv=128 --db " + db.string());
    CHECK(again_code == 0);
    CHECK(again.find("killed") == std::string::npos);
}

TEST_CASE("tune tool: shards of the work, merged, are the whole") {
    test::TempDir dir;
    const std::string tool = SAPWOOD_TOOL " tune --simulate --workloads " SAPWOOD_SOURCE_DIR
                                          "/tests/workloads/fasttree.json --layout random --case 'FT[1-6]' --db ";
    const auto at = [&](const char* name) { return (dir.path() / name).string(); };
    CHECK(shell(tool + at("all")).second == 0);
    for (const char* shard : {"1", "2", "3"}) CHECK(shell(tool + at(shard) + " --shard " + shard + "/3").second == 0);
    CHECK(shell(SAPWOOD_TOOL " merge " + at("2") + " " + at("3") + " " + at("1") + " --out " + at("merged")).second == 0);
    const std::string id = tune::RecordStore(at("all")).environments().at(0).id();
    CHECK(text_of(dir.path() / "merged" / id / "index.json") == text_of(dir.path() / "all" / id / "index.json"));
    CHECK(shell(tool + at("x") + " --shard 4/3").second == 2);
}

TEST_CASE("tune tool: draft trees are tuned for kernels with masks, in the buckets that plans look up") {
    test::TempDir dir;
    const fs::path db = dir.path() / "db";
    const auto [printed, code] = shell(SAPWOOD_TOOL " tune --simulate --workloads " SAPWOOD_SOURCE_DIR
                                                    "/tests/workloads/spec.json --page 16 --case SN-eagle60-2k-b16 --db " +
                                       db.string());
    CHECK_MESSAGE(code == 0, printed);
    const tune::RecordStore store(db);
    REQUIRE(store.environments().size() == 1);
    const std::vector<tune::Record> records = store.records(store.environments()[0]);
    CHECK(records.size() == 2);  // 32/8 and 64/8
    for (const tune::Record& record : records) CHECK(record.bucket.to_string().find("/scaled+mask/") != std::string::npos);
}

TEST_CASE("tune tool: training workloads are tuned and recorded beside decode, once; the warm-up lists a trainer's kernels") {
    test::TempDir dir;
    const fs::path db = dir.path() / "db";
    const std::string workloads = " --workloads " SAPWOOD_SOURCE_DIR "/tests/workloads/";
    const std::string command = SAPWOOD_TOOL " tune --simulate --db " + db.string() + " --limit 3";
    const auto [printed, code] = shell(command + workloads + "training.json " SAPWOOD_SOURCE_DIR "/tests/workloads/plain.json");
    CHECK_MESSAGE(code == 0, printed);
    CHECK(printed.find("8 problems in") != std::string::npos);  // two of the decode cases have equal sizes
    const tune::RecordStore store(db);
    REQUIRE(store.environments().size() == 1);
    std::size_t forward = 0, backward = 0, decode = 0, timed = 0;
    for (const tune::Record& record : store.records(store.environments()[0])) {
        const auto family = static_cast<Family>(record.bucket.family);
        (family == Family::packed_forward    ? forward
         : family == Family::packed_backward ? backward
                                             : decode) += record.measured.size();
        for (const tune::Measured& measured : record.measured)
            for (const tune::Timing& timing : measured.timings) timed += family != Family::decode && timing.candidate.measured();
    }
    CHECK((forward == 3 && backward == 3 && decode == 2 && timed >= 30));
    const std::string index = text_of(db / store.environments()[0].id() / "index.json");
    for (const char* family : {"packed_forward", "packed_backward"})
        CHECK(index.find("\"" + std::string(family) + "/b1/bf16/d128/") != std::string::npos);
    // What is recorded is not measured again: a candidate that would kill the worker is not even tried.
    const auto [again, again_code] = shell(command + " --simulate-crash block_kv=64" + workloads + "training.json");
    CHECK_MESSAGE(again_code == 0, again);
    CHECK(again.find("killed") == std::string::npos);

    // One pass alone.
    const fs::path other = dir.path() / "backward";
    const auto [one, one_code] =
        shell(SAPWOOD_TOOL " tune --simulate --limit 2 --passes bwd --db " + other.string() + workloads + "training.json");
    CHECK_MESSAGE(one_code == 0, one);
    CHECK(one.find(" fwd ") == std::string::npos);
    const std::vector<tune::Record> kept = tune::RecordStore(other).records(store.environments()[0]);
    CHECK(kept.size() == 2);
    for (const tune::Record& record : kept) CHECK(record.bucket.to_string().starts_with("packed_backward/"));

    const auto [keys, keys_code] =
        shell(SAPWOOD_TOOL " warm --list --engine-config " SAPWOOD_SOURCE_DIR "/tools/examples/trainer.json");
    CHECK_MESSAGE(keys_code == 0, keys);
    for (const char* family : {"packed_forward/", "packed_backward/", "backward_prepare/", "backward_finish/"})
        CHECK(keys.find(family) != std::string::npos);
    CHECK(keys.find("decode/") == std::string::npos);
}

TEST_CASE("tune tool: without a GPU it prunes, compiles, ranks, and reports without a network") {
    if (cuda::Nvrtc().path().empty()) {
        MESSAGE("NVRTC was not found; skipped");
        return;
    }
    test::TempDir dir;
    const fs::path html = dir.path() / "r.html", lines = dir.path() / "r.jsonl";
    const auto [printed, code] =
        shell(SAPWOOD_TOOL " tune --target sm_86 --top 2 --config warps=4 --workloads " SAPWOOD_SOURCE_DIR
                           "/tests/workloads/fasttree.json --layout random --case FT1 --heads 32/8 --cache-dir " +
              (dir.path() / "cache").string() + " --report " + html.string() + " --json " + lines.string());
    CHECK_MESSAGE(code == 0, printed);
    CHECK(printed.find("sm_86 (exact)") != std::string::npos);
    CHECK(printed.find("pruned:") == std::string::npos);  // only with --exhaustive
    const std::string json = text_of(lines), report = text_of(html);
    CHECK(json.find("\"compiled\":true") != std::string::npos);
    CHECK(json.find("\"status\":\"pruned:occupancy\"") != std::string::npos);
    CHECK(json.find("bytes of shared memory of an SM") != std::string::npos);
    CHECK(report.find("<svg") != std::string::npos);
    for (const char* outside : {"http:", "https:", "<script", "<link", "@import", "url("})
        CHECK(report.find(outside) == std::string::npos);
}
#endif
