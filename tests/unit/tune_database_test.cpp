// SPDX-License-Identifier: Apache-2.0
// Records on disk and what engines get of them: joins, damage, precedence, other devices, illegal configurations.
#include <doctest/doctest.h>

#include <algorithm>
#include <chrono>
#include <fstream>

#include "plan/tiles.h"
#include "sapwood/error.h"
#include "support/cache_fixture.h"
#include "support/offline_limits.h"
#include "support/random_forest.h"
#include "tune/config_fields.h"
#include "tune/database.h"
#include "tune/embedded.h"
#include "tune/epoch.h"
#include "tune/record_store.h"

using namespace sapwood;
namespace fs = std::filesystem;

namespace {

constexpr int kSm = 90;
const TunePolicy kPolicy;

tune::DeviceFacts facts(const std::string& name = "NVIDIA H100 80GB HBM3", const std::string& target = "sm_90a") {
    return {.limits = support::offline_limits(target), .name = name, .memory_bytes = std::int64_t{80} << 30};
}

DecodeProblem problem() { return complete({.q_heads = 32, .kv_heads = 8, .head_dim = 128, .page_size = 1}); }
tune::Sizes sizes_of(std::int64_t requests, std::int64_t tokens) {
    return {.kv_heads = 8,
            .page_size = 1,
            .requests = requests,
            .unique_tokens = tokens,
            .path_tokens = tokens * 4,
            .widest = requests,
            .longest = tokens / 4};
}
DecodeConfig config_of(int split, int stages = 6) {
    return {.mainloop = Mainloop::mma, .warps = 8, .producers = 4, .block_kv = 64, .stages = stages, .blocks = 1, .split = split};
}
TuneCandidate timed(const DecodeConfig& config, double us, const std::string& status = "ok") {
    return {.config = config, .status = status, .registers = 168, .compiled = true, .median_us = us, .mad_us = 0.01, .samples = 30};
}

/// A record as one run of the tuner leaves it; `date` is of that run.
tune::Record record_of(const tune::Sizes& sizes, std::vector<TuneCandidate> candidates, const std::string& date) {
    tune::Record record = {.bucket = tune::bucket_of(problem(), sizes), .policy = kPolicy.name, .code = tune::code_digest()};
    TuneReport report;
    report.default_config = config_of(0);
    report.candidates = std::move(candidates);
    tune::add(record, "case", sizes, report, {.gpu = "H100", .tool = "test", .date = date, .sm = kSm});
    return record;
}

tune::Record joined(tune::Record a, const tune::Record& b) {
    tune::merge(a, b, kSm, kPolicy, nullptr);
    return a;
}
std::string text(const tune::Record& record) { return tune::to_json(record, kSm, kPolicy); }

std::string read(const fs::path& path) {
    std::ifstream in(path);
    return std::string(std::istreambuf_iterator<char>(in), {});
}
void write(const fs::path& path, const std::string& content) { std::ofstream(path) << content; }

tune::Bucket bucket(std::int64_t requests, std::int64_t tokens) { return tune::bucket_of(problem(), sizes_of(requests, tokens)); }

}  // namespace

TEST_CASE("tune record: merging is associative, commutative and idempotent") {
    std::vector<tune::Record> inputs;
    for (std::uint64_t seed = 0; seed < 12; ++seed) {
        support::Dice dice(seed);
        std::vector<TuneCandidate> candidates = {timed(config_of(0), 20)};
        for (int split = 1; split < 6; ++split)
            if (dice.below(2)) candidates.push_back(timed(config_of(split), dice.between(15, 25), dice.below(5) ? "ok" : "wrong"));
        // Two problems of one bucket, and runs of equal date.
        inputs.push_back(
            record_of(sizes_of(64, 8192 + 64 * dice.below(2)), candidates, "2026-11-" + std::to_string(10 + dice.below(3))));
    }
    for (std::size_t i = 0; i + 2 < inputs.size(); ++i) {
        const auto &a = inputs[i], &b = inputs[i + 1], &c = inputs[i + 2];
        CHECK(text(joined(a, b)) == text(joined(b, a)));
        CHECK(text(joined(joined(a, b), c)) == text(joined(a, joined(b, c))));
        CHECK(text(joined(joined(a, b), b)) == text(joined(a, b)));
    }
    // The later timing of a configuration counts; a contradiction is reported.
    tune::Record old = record_of(sizes_of(64, 8192), {timed(config_of(0), 20), timed(config_of(2), 15)}, "2026-01-01");
    const tune::Record fresh = record_of(sizes_of(64, 8192), {timed(config_of(0), 20), timed(config_of(2), 25)}, "2026-02-01");
    std::vector<std::string> conflicts;
    tune::merge(old, fresh, kSm, kPolicy, &conflicts);
    CHECK(conflicts.size() == 1);
    CHECK(tune::same_config(old.best(kSm, kPolicy), config_of(0)));
}

TEST_CASE("tune record: the best over several problems of a bucket; unknown fields are kept") {
    tune::Record record =
        record_of(sizes_of(64, 8192), {timed(config_of(0), 20), timed(config_of(1), 14), timed(config_of(2), 16)}, "d");
    CHECK(tune::same_config(record.best(kSm, kPolicy), config_of(1)));
    record = joined(
        record, record_of(sizes_of(66, 8192), {timed(config_of(0), 20), timed(config_of(1), 19), timed(config_of(2), 15)}, "d"));
    CHECK(record.measured.size() == 2);
    CHECK(tune::same_config(record.best(kSm, kPolicy), config_of(2)));
    record = joined(record, record_of(sizes_of(68, 8192),
                                      {timed(config_of(0), 20), timed(config_of(1), 19), timed(config_of(2), 15, "wrong")}, "d"));
    CHECK(tune::same_config(record.best(kSm, kPolicy), config_of(1)));  // wrong once is out
    // Split 4 is the fastest of one problem, and the same plan as split 1 in the other.
    TuneCandidate also = timed(config_of(1), 15);
    also.same = {config_of(4)};
    tune::Record twins =
        record_of(sizes_of(64, 8192), {timed(config_of(0), 20), timed(config_of(1), 20), timed(config_of(4), 15)}, "d");
    twins = joined(record_of(sizes_of(66, 8192), {timed(config_of(0), 20), also}, "d"), twins);
    CHECK(tune::same_config(twins.best(kSm, kPolicy), config_of(4)));
    CHECK(text(*tune::record_from(text(twins), nullptr)) == text(twins));

    std::string json = text(record);
    json.replace(json.find("\"schema\":1"), 10, "\"schema\":1, \"from_later\": {\"x\": [1]}");
    json.replace(json.find("\"median_us\""), 11, "\"energy\": 3, \"median_us\"");
    std::string fault;
    const auto again = tune::record_from(json, &fault);
    REQUIRE_MESSAGE(again, fault);
    CHECK(text(*again).find("from_later") != std::string::npos);
    CHECK(text(*again).find("energy") != std::string::npos);
    json.replace(json.rfind("\"warps\""), 7, "\"wraps\"");
    CHECK(!tune::record_from(json, &fault));  // another configuration than it says
    CHECK(fault.find("wraps") != std::string::npos);
}

TEST_CASE("tune database: exact, near, other GPU, default; damage is a record that is not there") {
    test::TempDir dir;
    const tune::RecordStore store(dir.path());
    const tune::Environment here = tune::environment_of(facts(), kPolicy);
    store.save(here,
               record_of(sizes_of(64, 8192), {timed(config_of(0), 20), timed(config_of(2), 15), timed(config_of(3), 16)}, "d"),
               kPolicy);
    store.save(here, record_of(sizes_of(512, 65536), {timed(config_of(0), 20), timed(config_of(4), 15)}, "d"), kPolicy);
    const tune::Database database(facts(), dir.path(), false);
    CHECK(database.size() == 2);
    const auto ask = [](const tune::Database& from, const tune::Bucket& which, const DecodeConfig& fixed = {}) {
        return from.find(which, problem(), fixed);
    };
    CHECK(ask(database, bucket(64, 8192)).match == TuneMatch::exact);
    CHECK(tune::same_config(ask(database, bucket(64, 8192)).config, config_of(2)));
    CHECK(ask(database, bucket(90, 8192)).match == TuneMatch::near_bucket);
    CHECK(tune::same_config(ask(database, bucket(400, 50000)).config, config_of(4)));
    CHECK(ask(database, bucket(4, 8192)).match == TuneMatch::fallback);
    // Fields that the caller fixes: the fastest that agrees, else nothing.
    CHECK(tune::same_config(ask(database, bucket(64, 8192), {.split = 3}).config, config_of(3)));
    CHECK(ask(database, bucket(64, 8192), {.block_kv = 32}).match == TuneMatch::fallback);
    // Another board of this SM; an SM that cannot run it; kernels that have changed.
    CHECK(ask(tune::Database(facts("NVIDIA H200"), dir.path(), false), bucket(64, 8192)).match == TuneMatch::other_gpu);
    CHECK(tune::Database(facts("A10", "sm_86"), dir.path(), false).size() == 0);
    // Another driver: used, and said.
    const auto with_driver = [](int driver) {
        tune::DeviceFacts device = facts();
        device.cuda_driver = driver;
        return device;
    };
    tune::Record dated = record_of(sizes_of(2, 512), {timed(config_of(0), 20)}, "d");
    dated.runs.begin()->second.cuda_driver = 12080;
    test::TempDir other_driver;
    tune::RecordStore(other_driver.path()).save(here, dated, kPolicy);
    const tune::Database warned(with_driver(13000), other_driver.path(), false);
    CHECK((warned.size() == 1 && warned.other_driver().find("12.8") != std::string::npos));
    CHECK(tune::Database(with_driver(12080), other_driver.path(), false).other_driver().empty());
    tune::Environment old = here;
    old.code = "0123456789abcdef";
    test::TempDir stale;
    tune::RecordStore(stale.path()).save(old, record_of(sizes_of(64, 8192), {timed(config_of(2), 15)}, "d"), kPolicy);
    CHECK(tune::Database(facts(), stale.path(), false).size() == 0);

    const fs::path entries = dir.path() / here.id() / "entries" / "decode";
    const std::string digest = database.digest();
    CHECK(tune::Database(facts(), dir.path(), false).digest() == digest);
    write(*fs::directory_iterator(entries), "{\"schema\": 1, \"fam");
    const tune::Database damaged(facts(), dir.path(), false);
    CHECK((damaged.size() == 1 && damaged.faults().size() == 1 && damaged.digest() != digest));
}

TEST_CASE("tune database: an illegal record is rejected with the reason, not used") {
    test::TempDir dir;
    const tune::Environment here = tune::environment_of(facts(), kPolicy);
    tune::RecordStore(dir.path())
        .save(here, record_of(sizes_of(64, 8192), {timed(config_of(0), 20), timed(config_of(0, 12), 10)}, "d"), kPolicy);
    const tune::Lookup lookup = tune::Database(facts(), dir.path(), false).find(bucket(64, 8192), problem(), {});
    CHECK(lookup.match == TuneMatch::fallback);
    CHECK(lookup.rejected.find("shared memory") != std::string::npos);
}

TEST_CASE("tune database: merging directories does not depend on their order; the index says the same") {
    test::TempDir a, b, ab, ba;
    const tune::Environment here = tune::environment_of(facts(), kPolicy);
    tune::RecordStore(a.path()).save(here, record_of(sizes_of(64, 8192), {timed(config_of(0), 20), timed(config_of(2), 15)}, "1"),
                                     kPolicy);
    tune::RecordStore(b.path()).save(here, record_of(sizes_of(64, 8192), {timed(config_of(0), 20), timed(config_of(3), 12)}, "1"),
                                     kPolicy);
    tune::RecordStore(b.path()).save(here, record_of(sizes_of(8, 8192), {timed(config_of(0), 20)}, "1"), kPolicy);
    const std::vector<fs::path> first = {a.path(), b.path()}, second = {b.path(), a.path()};
    const tune::MergeReport report = tune::merge_databases(first, ab.path());
    CHECK((report.records == 2 && report.joined == 1 && report.conflicts.size() == 1 && report.faults.empty()));
    tune::merge_databases(second, ba.path());
    const tune::Database merged(facts(), ab.path(), false);
    CHECK(merged.digest() == tune::Database(facts(), ba.path(), false).digest());
    CHECK(tune::same_config(merged.find(bucket(64, 8192), problem(), {}).config, config_of(3)));
    const std::string index = read(ab.path() / here.id() / "index.json");
    CHECK(index == read(ba.path() / here.id() / "index.json"));
    tune::Environment environment;
    std::unordered_map<tune::Bucket, tune::Choice, tune::BucketHash> choices;
    std::string fault;
    REQUIRE_MESSAGE(tune::parse_index(index, environment, choices, &fault), fault);
    CHECK((environment == here && choices.size() == 2));
    CHECK(tune::same_config(choices.at(bucket(64, 8192)).best, config_of(3)));
    CHECK(choices.at(bucket(64, 8192)).ranked.size() == 3);
    CHECK_THROWS_WITH_AS(tune::merge_databases(std::vector<fs::path>{a.path() / "none"}, ab.path()),
                         doctest::Contains("no tuning database"), Error);
}

TEST_CASE("tune database: a look-up takes less than 10 microseconds, near ones among 500 buckets too") {
    test::TempDir dir;
    std::vector<tune::Record> records;
    for (int i = 0; i < 500; ++i)
        records.push_back(record_of(sizes_of(1 + i % 40 * 13, 64 << (i / 40)), {timed(config_of(0), 20)}, "d"));
    const tune::Environment here = tune::environment_of(facts(), kPolicy);
    for (const tune::Record& record : records) tune::RecordStore(dir.path()).save(here, record, kPolicy);
    const tune::Database database(facts(), dir.path(), false);
    int found = 0;
    const auto begin = std::chrono::steady_clock::now();
    for (int i = 0; i < 1000; ++i)
        found += database.find(bucket(1 + i % 600, 100 + 37 * i), problem(), {}).match != TuneMatch::none;
    const double us = std::chrono::duration<double, std::micro>(std::chrono::steady_clock::now() - begin).count() / 1000;
    CHECK(found == 1000);
    CHECK(us < 50);  // 10 with room for a busy machine
    MESSAGE("look-up, near ones included: " << us << " us");
}

TEST_CASE("tune shipped: every record is of this epoch, for a known SM, legal, and confirmed for the kernels as they are") {
    int indices = 0;
    for (const tune::EmbeddedFile& file : tune::embedded_tuning()) {
        if (!file.path.ends_with("index.json")) continue;
        ++indices;
        CAPTURE(file.path);
        tune::Environment environment;
        std::unordered_map<tune::Bucket, tune::Choice, tune::BucketHash> choices;
        std::string fault;
        REQUIRE_MESSAGE(tune::parse_index(file.text, environment, choices, &fault), fault);
        CHECK(environment.epoch == tune::tuning_epoch().number);
        CHECK(!choices.empty());
        const Limits limits = support::offline_limits(cuda::target_for(environment.sm / 10, environment.sm % 10));
        for (const auto& [which, choice] : choices) {
            const DecodeProblem asked = complete({.q_heads = which.group,
                                                  .kv_heads = 1,
                                                  .head_dim = which.head_dim,
                                                  .head_dim_v = which.head_dim_v,
                                                  .dtype = static_cast<DType>(which.dtype),
                                                  .kv_dtype = static_cast<KvDType>(which.kv_dtype)});
            CHECK_MESSAGE(why_illegal(asked, choice.best, limits).empty(), which.to_string());
        }
    }
    if (indices > 0)
        CHECK_MESSAGE(
            tune::tuning_epoch().confirmed_for == tune::code_digest(),
            "the kernels' code has changed since the shipped tuning was confirmed. If the change cannot alter which configuration "
            "is fastest, write \"code "
                << tune::code_digest() << "\" into tuning/epoch; else tune anew (docs/tuning.md)");
}
