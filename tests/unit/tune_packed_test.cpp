// SPDX-License-Identifier: Apache-2.0
// Tuning of calls over packs: buckets, candidates, records, look-ups.
#include <doctest/doctest.h>

#include "plan/packed_tiles.h"
#include "support/cache_fixture.h"
#include "support/offline_limits.h"
#include "tune/config_fields.h"
#include "tune/database.h"
#include "tune/epoch.h"
#include "tune/packed_candidates.h"
#include "tune/prune.h"
#include "tune/record_store.h"

using namespace sapwood;
namespace fs = std::filesystem;

namespace {

PackedProblem problem_of(int dim) { return complete({.q_heads = 32, .kv_heads = 8, .head_dim = dim}); }

tune::DeviceFacts facts(const char* target) { return {.limits = support::offline_limits(target), .name = "a board"}; }

/// A prompt with answers.
Pack pack_of(std::int64_t prompt, int answers, std::int64_t tokens) {
    std::vector<Segment> segments = {{-1, prompt}};
    for (int i = 0; i < answers; ++i) segments.push_back({0, tokens});
    return Pack::from_segments(segments);
}

tune::CandidateSet candidates(const PackedProblem& problem, const Pack& pack, const tune::DeviceFacts& device,
                              const TuneOptions& options = {}, Family pass = Family::packed_forward) {
    return tune::find_packed_candidates({pass, problem}, pack, device, options, {});
}

const TuneCandidate* find(const tune::CandidateSet& set, const DecodeConfig& config) {
    for (const TuneCandidate& candidate : set.all)
        if (tune::same_config(candidate.config, config)) return &candidate;
    return nullptr;
}

}  // namespace

TEST_CASE("tune packed: a bucket is shapes, tokens, density and the length of segments; its text reads back") {
    const PackedProblem problem = problem_of(128);
    const Pack pack = pack_of(4096, 12, 1024);
    const tune::Sizes sizes = tune::sizes_of(problem, pack);
    CHECK((sizes.requests == 16384 && sizes.unique_tokens == 16384 && sizes.path_tokens == pack.visible_pairs()));
    CHECK(sizes.longest == 16384 / static_cast<std::int64_t>(pack.runs().size()));
    const tune::Bucket bucket = tune::bucket_of(problem, sizes);
    CHECK(bucket.to_string() == "packed_forward/b1/bf16/d128/v128/g4/contiguous/scaled/h8/r16384/u16384/x4096/w0/l1448");
    tune::Bucket read;
    REQUIRE(tune::parse_bucket(bucket.to_string(), read));
    CHECK(read == bucket);
    // A decode step of equal shapes and sizes is other code: neither exact nor near.
    const tune::Bucket decode =
        tune::bucket_of(DecodeProblem{.q_heads = 32, .kv_heads = 8, .head_dim = 128, .head_dim_v = 128, .scale = 1}, sizes);
    CHECK(!tune::same_code(bucket, decode));
    CHECK(tune::key24(bucket) != tune::key24(decode));
    // So is the backward pass.
    const tune::Bucket backward = tune::bucket_of(problem, sizes, Family::packed_backward);
    CHECK(backward.to_string() == "packed_backward" + bucket.to_string().substr(14));
    REQUIRE(tune::parse_bucket(backward.to_string(), read));
    CHECK(read == backward);
    CHECK(!tune::same_code(bucket, backward));
    CHECK(!tune::parse_bucket("backward_finish" + bucket.to_string().substr(14), read));
}

TEST_CASE("tune packed: all that can run is a candidate, the default first; what cannot says why") {
    const Pack pack = pack_of(4096, 12, 1024);
    const tune::CandidateSet hopper = candidates(problem_of(128), pack, facts("sm_90a"));
    REQUIRE(hopper.alive().size() >= 6);
    CHECK(hopper.alive().front() == 0);
    CHECK(tune::same_config(hopper.all[0].config, tune::as_decode(choose_config(problem_of(128), {}, facts("sm_90a").limits))));
    for (const std::size_t i : hopper.alive()) {
        const TuneCandidate& candidate = hopper.all[i];
        CHECK(why_illegal(problem_of(128), tune::as_packed(candidate.config), facts("sm_90a").limits).empty());
        CHECK(candidate.cost_us >= hopper.floor_us);  // tiles hold at least the visible pairs
        CHECK(candidate.blocks_per_sm >= candidate.config.blocks);
    }
    CHECK(hopper.all[tune::least_cost(hopper.all)].config.mainloop == Mainloop::wgmma);

    const tune::CandidateSet ada = candidates(problem_of(64), pack, facts("sm_89"));
    CHECK(ada.alive().size() >= 3);
    for (const TuneCandidate& candidate : ada.all) {
        if (candidate.config.mainloop != Mainloop::wgmma) continue;
        CHECK(candidate.status == "pruned:shape");
        CHECK(candidate.reason.find("needs sm_90a") != std::string::npos);
    }

    // The caller's say.
    const DecodeConfig mine = {.mainloop = Mainloop::mma, .warps = 4, .producers = 2, .block_kv = 32, .stages = 3, .blocks = 1};
    TuneOptions options = {.add = {mine}};
    options.prune = [](const TuneCandidate& c) { return c.config.block_kv == 128 ? std::string("too wide") : std::string(); };
    const tune::CandidateSet asked = candidates(problem_of(64), pack, facts("sm_90a"), options);
    REQUIRE(find(asked, mine) != nullptr);
    CHECK(find(asked, mine)->status == "ok");
    for (const TuneCandidate& candidate : asked.all)
        CHECK((candidate.config.block_kv != 128 || candidate.status != "ok" || &candidate == &asked.all[0]));
}

TEST_CASE("tune packed: records lie beside those of decode, and an engine's look-up finds them") {
    test::TempDir dir;
    const PackedProblem problem = problem_of(128);
    const Pack pack = pack_of(4096, 12, 1024);
    const tune::DeviceFacts here = facts("sm_90a");
    const tune::CandidateSet set = candidates(problem, pack, here);
    const DecodeConfig by_default = set.all[0].config, best = set.all[set.alive()[1]].config;
    TuneReport report;
    report.default_config = by_default;
    report.candidates = {{.config = by_default, .median_us = 20, .samples = 30}, {.config = best, .median_us = 10, .samples = 30}};
    tune::Record record = {.bucket = tune::bucket_of(problem, tune::sizes_of(problem, pack)),
                           .policy = TunePolicy{}.name,
                           .code = tune::code_digest()};
    tune::add(record, "case", tune::sizes_of(problem, pack), report, {.date = "d", .sm = 90});
    const tune::Environment environment = tune::environment_of(here, {});
    const tune::RecordStore store(dir.path());
    store.save(environment, record, {});
    CHECK(fs::exists(dir.path() / environment.id() / "entries" / "packed_forward" / (tune::key24(record.bucket) + ".json")));
    REQUIRE(store.records(environment).size() == 1);
    CHECK(store.records(environment)[0].bucket == record.bucket);
    CHECK(tune::same_config(store.records(environment)[0].best(90, {}), best));

    const tune::Database database(here, dir.path(), /*with_embedded=*/false);
    const auto look = [&](const Pack& which, const PackedConfig& fixed) {
        return database.find(tune::bucket_of(problem, tune::sizes_of(problem, which)), problem, tune::as_decode(fixed));
    };
    CHECK(look(pack, {}).match == TuneMatch::exact);
    CHECK(tune::same_config(look(pack, {}).config, best));
    CHECK(look(pack_of(4096, 15, 1024), {}).match == TuneMatch::near_bucket);
    CHECK(look(pack_of(100, 2, 30), {}).match == TuneMatch::fallback);
    CHECK(look(pack, {.warps = 4}).match == TuneMatch::fallback);  // nothing of four warps was measured

    // The same records where the best cannot run: a reason, and the default.
    tune::DeviceFacts small = here;
    small.limits.max_shared_block = small.limits.max_shared_sm = 64 * 1024;
    const tune::Lookup refused = tune::Database(small, dir.path(), false).find(record.bucket, problem, {});
    CHECK(refused.match == TuneMatch::fallback);
    CHECK(refused.rejected.find("bytes of shared memory") != std::string::npos);
}

TEST_CASE("tune packed: a backward pass is tried with every kernel that can run, and its groups in as many items as divide them") {
    constexpr Family kPass = Family::packed_backward;
    const PackedProblem problem = problem_of(128);
    const Pack pack = Pack::from_segments(std::vector<Segment>{{-1, 32768}});
    const tune::PackedPass pass(kPass, problem);
    const tune::CandidateSet set = candidates(problem, pack, facts("sm_90a"), {}, kPass);
    CHECK(tune::same_config(set.all[0].config, pass.by_default({}, facts("sm_90a").limits)));
    CHECK(set.all[0].config.mainloop == Mainloop::wgmma);
    int splits = 0, by_warps = 0;
    for (const std::size_t i : set.alive()) {
        const DecodeConfig& config = set.all[i].config;
        CHECK(pass.why_illegal(config, facts("sm_90a").limits).empty());
        CHECK(set.all[i].cost_us >= set.floor_us);
        CHECK(set.all[i].items > 0);
        splits += config.mainloop == Mainloop::wgmma && config.split > 1;
        by_warps += config.mainloop == Mainloop::mma && config.split == 0;
    }
    // Here the planner has an item walk one head by itself: split=4 would be measured twice.
    CHECK(splits == 1);
    CHECK(by_warps >= 3);
    REQUIRE(!set.all[0].same.empty());
    CHECK(set.all[0].same[0].split == 4);
    DecodeConfig eight = set.all[0].config;
    eight.split = 8;
    REQUIRE(find(set, eight) != nullptr);
    CHECK(find(set, eight)->reason.find("4 query heads of a KV head do not fall into 8") != std::string::npos);
    // `split` is PackedConfig::heads, and back.
    DecodeConfig two = set.all[0].config;
    two.split = 2;
    CHECK(pass.as_packed(two).heads == 2);
    CHECK(tune::same_config(pass.as_decode(pass.as_packed(two)), two));
}
