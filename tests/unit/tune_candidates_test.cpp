// SPDX-License-Identifier: Apache-2.0
// Lists, buckets, pruning and ranking: all that tuning does before it needs a device.
#include <doctest/doctest.h>

#include <algorithm>
#include <set>

#include "attention/decode_layout.h"
#include "plan/tiles.h"
#include "sapwood/error.h"
#include "support/offline_limits.h"
#include "tune/candidates.h"
#include "tune/config_fields.h"
#include "tune/epoch.h"
#include "tune/prune.h"

using namespace sapwood;

namespace {

tune::DeviceFacts facts(const std::string& target) {
    const cuda::DeviceInfo info = cuda::offline_device(target);
    return {.limits = limits_of(info, target), .name = info.name, .max_threads_sm = info.max_threads_per_sm};
}

Forest shared_prompt(int requests, std::int64_t prompt, std::int64_t own) {
    std::vector<Node> nodes = {{.parent = -1, .tokens = prompt}};
    for (int i = 0; i < requests; ++i) nodes.push_back({.parent = 0, .tokens = own, .kv_begin = prompt + own * i});
    return Forest::from_nodes(nodes);
}

DecodeProblem problem_of(std::int32_t head_dim = 128) {
    return complete({.q_heads = 32, .kv_heads = 8, .head_dim = head_dim, .page_size = 1});
}

tune::CandidateSet find(const DecodeProblem& problem, const std::string& target, const TuneOptions& options,
                        std::vector<DecodeConfig> wanted = {}) {
    const Forest forest = shared_prompt(64, 2000, 100);
    return tune::find_candidates(problem, forest, order_of(forest), facts(target), options, wanted);
}

const TuneCandidate* in(const tune::CandidateSet& set, const DecodeConfig& config) {
    for (const TuneCandidate& c : set.all)
        if (tune::same_config(c.config, config)) return &c;
    return nullptr;
}

}  // namespace

TEST_CASE("tune lists: exact, family, major, generic") {
    const auto says = [](int sm) { return tune::list_for(sm).to_string(); };
    for (const int sm : {80, 86, 89, 90, 100, 103, 120}) CHECK(says(sm) == "sm_" + std::to_string(sm) + " (exact)");
    CHECK(says(87) == "sm_80 (family)");
    CHECK(says(121) == "sm_120 (family)");
    CHECK(says(101) == "sm_103 (major)");
    CHECK(says(150) == "generic (generic)");
    // Every list has a kernel that its own board runs, at every head dim.
    for (const tune::ConfigList& list : tune::config_lists()) {
        const std::string target = list.sm == 0 ? "sm_80" : cuda::target_for(list.sm / 10, list.sm % 10);
        for (const int dim : {64, 96, 128, 192, 256}) {
            CAPTURE(list.name);
            CAPTURE(dim);
            CHECK(std::any_of(list.kernels.begin(), list.kernels.end(), [&](const DecodeConfig& row) {
                try {
                    return why_illegal(problem_of(dim), choose_config(problem_of(dim), row, facts(target).limits),
                                       facts(target).limits)
                        .empty();
                } catch (const Error&) {
                    return false;
                }
            }));
        }
    }
}

TEST_CASE("tune fields: texts come back, in the list's order, and unknown ones are refused") {
    DecodeConfig config = {.mainloop = Mainloop::wgmma, .warps = 8, .block_kv = 64, .rows = 32};
    CHECK(tune::config_text(config) == "mainloop=wgmma,warps=8,block_kv=64,rows=32");
    DecodeConfig read;
    CHECK((tune::set_field(read, "mainloop", "wgmma") && tune::set_field(read, "warps", "8") &&
           tune::set_field(read, "block_kv", "64") && tune::set_field(read, "rows", "32")));
    CHECK(tune::same_config(read, config));
    CHECK(!tune::set_field(read, "warp", "8"));
    CHECK(!tune::set_field(read, "warps", "8x"));
    CHECK(!tune::set_field(read, "mainloop", "tcgen"));
    read.rows = 0;
    CHECK((tune::same_kernel(read, config) && !tune::same_config(read, config)));
}

TEST_CASE("tune bucket: half octaves, what changes code exactly, text and back") {
    const Forest forest = shared_prompt(64, 2000, 100);
    const tune::Sizes sizes = tune::sizes_of(problem_of(), order_of(forest));
    CHECK((sizes.requests == 64 && sizes.unique_tokens == 8400 && sizes.path_tokens == 64 * 2100 && sizes.widest == 64 &&
           sizes.longest == 2100));
    const tune::Bucket bucket = tune::bucket_of(problem_of(), sizes);
    CHECK(bucket.to_string() == "decode/b1/bf16/d128/v128/g4/token/scaled/h8/r64/u8192/x16/w64/l2048");
    const auto with = [&](auto change) {
        DecodeProblem problem = problem_of();
        tune::Sizes other = sizes;
        change(problem, other);
        return tune::bucket_of(problem, other);
    };
    CHECK(with([](auto&, auto& s) { s.requests = 70, s.unique_tokens = 9000; }) == bucket);
    CHECK(with([](auto&, auto& s) { s.requests = 80; }) != bucket);
    CHECK(tune::distance(bucket, with([](auto&, auto& s) { s.requests = 128; })) == 2);
    for (const auto& other : {with([](auto&p, auto&) { p.softcap = 30; }), with([](auto&p, auto&) { p.page_size = 0; }),
                              with([](auto&p, auto&) { p.mask = true; }), with([](auto&p, auto&) { p.q_heads = 64; }),
                              with([](auto&p, auto&) { p.dtype = DType::fp16; })})
        CHECK(!tune::same_code(bucket, other));
    CHECK(with([](auto& p, auto&) { p.page_size = 64; }) == with([](auto& p, auto&) { p.page_size = 16; }));
    for (double ratio = 0; ratio < 1e7; ratio = ratio * 1.13 + 0.7) {
        tune::Bucket some = bucket;
        some.sharing = tune::half_octave(ratio), some.longest = tune::half_octave(ratio * 3);
        tune::Bucket read;
        CHECK(tune::parse_bucket(some.to_string(), read));
        CHECK(read == some);
    }
    tune::Bucket read;
    const tune::Bucket masked = with([](auto& p, auto&) { p.mask = true; });
    CHECK(masked.to_string() == "decode/b1/bf16/d128/v128/g4/token/scaled+mask/h8/r64/u8192/x16/w64/l2048");
    CHECK((tune::parse_bucket(masked.to_string(), read) && read == masked));
    CHECK(!tune::parse_bucket("decode/b2/bf16/d128/v128/g4/token/scaled/h8/r64/u8192/x16/w64/l2048", read));
}

TEST_CASE("tune prune: named reasons with the kernel's own numbers") {
    const auto why = [](const std::string& target, int dim, const DecodeConfig& config) {
        TuneCandidate candidate = {.config = config};
        tune::apply_resource_model(problem_of(dim), facts(target), candidate);
        return candidate;
    };
    const DecodeConfig wide = {.mainloop = Mainloop::mma, .warps = 8, .producers = 4, .block_kv = 64, .stages = 6, .blocks = 1};
    const TuneCandidate fits = why("sm_90a", 128, wide);
    CHECK(fits.status == "ok");
    CHECK(fits.shared_bytes == static_cast<int>(abi::decode_shared_bytes({128, 128, 4, 8, 4, 64, 6})));
    const TuneCandidate large = why("sm_86", 128, wide);
    CHECK(large.status == "pruned:smem");
    CHECK(large.reason.find(std::to_string(large.shared_bytes)) != std::string::npos);
    DecodeConfig twice = wide;
    twice.warps = 4, twice.blocks = 2, twice.stages = 3;
    CHECK(why("sm_90a", 128, twice).status == "pruned:registers");
    CHECK(why("sm_90a", 64, twice).status == "ok");
    twice.stages = 6;
    CHECK(why("sm_90a", 128, twice).status == "pruned:occupancy");
    twice.warps = 5;
    CHECK(why("sm_90a", 64, twice).status == "pruned:shape");

    TuneCandidate compiled =
        why("sm_90a", 64, {.mainloop = Mainloop::mma, .warps = 4, .producers = 4, .block_kv = 64, .stages = 3, .blocks = 2});
    tune::apply_compiled(facts("sm_90a"), 128, 0, compiled);
    CHECK((compiled.status == "ok" && compiled.blocks_per_sm == 2));
    tune::apply_compiled(facts("sm_90a"), 168, 0, compiled);
    CHECK(compiled.status == "pruned:occupancy");
}

TEST_CASE("tune candidates: the default comes first, equal plans once, and the caller's wishes hold") {
    TuneOptions all;
    all.exhaustive = true;
    const tune::CandidateSet set = find(problem_of(), "sm_90a", all);
    CHECK(tune::same_config(set.all[0].config, choose_config(problem_of(), {}, facts("sm_90a").limits)));
    std::set<std::string> names, reasons;
    for (const TuneCandidate& c : set.all) {
        CHECK(names.insert(tune::config_text(c.config)).second);
        CHECK((c.status == "ok") == c.reason.empty());
        reasons.insert(c.status);
    }
    CHECK((reasons.contains("pruned:same-plan") && reasons.contains("pruned:registers")));
    CHECK(set.alive().size() >= 20);

    TuneOptions few;
    few.top_k = 3;
    const DecodeConfig odd = {
        .mainloop = Mainloop::mma, .warps = 4, .producers = 1, .block_kv = 32, .stages = 5, .blocks = 1, .split = 5};
    few.add = {odd};
    few.restrict_to = [](const DecodeConfig& config) { return config.warps == 4; };
    few.prune = [](const TuneCandidate& c) { return c.config.block_kv == 128 ? std::string("not here") : std::string(); };
    const DecodeConfig neighbour = {
        .mainloop = Mainloop::mma, .warps = 4, .producers = 2, .block_kv = 32, .stages = 7, .blocks = 1, .split = 16};
    const tune::CandidateSet chosen = find(problem_of(), "sm_90a", few, {neighbour});
    CHECK(chosen.alive().size() < set.alive().size() / 2);
    CHECK(in(chosen, odd)->status == "ok");  // the first of its kernel
    CHECK(in(chosen, neighbour)->status == "ok");
    for (const std::size_t i : chosen.alive())
        CHECK((i == 0 || (chosen.all[i].config.warps == 4 && chosen.all[i].config.block_kv != 128)));

    TuneOptions fixed;
    fixed.fix = {.block_kv = 32, .split = 2};
    fixed.cost = [](const TuneCandidate& c) { return static_cast<double>(c.config.stages); };
    const tune::CandidateSet only = find(problem_of(), "sm_90a", fixed);
    for (const TuneCandidate& c : only.all) CHECK((c.config.block_kv == 32 && c.config.split == 2));
    for (const std::size_t i : only.alive()) CHECK(only.all[tune::least_cost(only.all)].config.stages <= only.all[i].config.stages);
}

TEST_CASE("tune epoch: comments and white space keep records, code does not") {
    CHECK(tune::code_of("a  b // c\n  d /* e \n */ f") == tune::code_of("a b\nd f"));
    CHECK(tune::code_of("a b") != tune::code_of("ab"));
    CHECK(tune::code_of("\"a // b\" c") == "\"a // b\" c");
    CHECK(tune::code_digest().size() == 16);
    CHECK(tune::tuning_epoch().number >= 1);
}
