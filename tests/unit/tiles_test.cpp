// SPDX-License-Identifier: Apache-2.0
#include "plan/tiles.h"

#include <doctest/doctest.h>

#include <functional>
#include <limits>

#include "plan/cover.h"
#include "sapwood/error.h"
#include "support/offline_limits.h"
#include "tune/bucket.h"

using namespace sapwood;

namespace {

const std::initializer_list<const char*> kTargets = {"sm_80", "sm_86", "sm_89", "sm_90a", "sm_100a", "sm_120a"};

/// The code and text of what `call` throws.
std::pair<ErrorCode, std::string> thrown(const std::function<void()>& call) {
    try {
        call();
    } catch (const Error& error) {
        return {error.code(), error.what()};
    }
    FAIL("nothing was thrown");
    return {};
}

DecodeProblem problem_of(std::int32_t head_dim, std::int32_t head_dim_v, std::int32_t group) {
    return complete({.q_heads = 2 * group, .kv_heads = 2, .head_dim = head_dim, .head_dim_v = head_dim_v});
}

}  // namespace

TEST_CASE("tiles: complete fills in the defaults and keeps what is given") {
    const DecodeProblem open = complete({.q_heads = 32, .kv_heads = 8, .head_dim = 64});
    CHECK(open.head_dim_v == 64);
    CHECK(open.scale == 0.125f);
    const DecodeProblem given = complete({.q_heads = 64,
                                          .kv_heads = 1,
                                          .head_dim = 192,
                                          .head_dim_v = 128,
                                          .dtype = DType::fp16,
                                          .page_size = 128,
                                          .scale = -0.5f,
                                          .softcap = 30});
    CHECK(given.head_dim_v == 128);
    CHECK(given.scale == -0.5f);
    CHECK(given.softcap == 30);
    for (const int page : {0, 1, 16, 32, 64, 128}) {
        CHECK_NOTHROW(complete({.q_heads = 1, .kv_heads = 1, .head_dim = 256, .page_size = page}));
    }
}

TEST_CASE("tiles: every illegal field of a problem is refused with its value") {
    const DecodeProblem good = {.q_heads = 32, .kv_heads = 8, .head_dim = 128};
    const float nan = std::numeric_limits<float>::quiet_NaN(), infinity = std::numeric_limits<float>::infinity();
    const auto refuses = [&](const char* value, const std::function<void(DecodeProblem&)>& spoil) {
        DecodeProblem problem = good;
        spoil(problem);
        const auto [code, text] = thrown([&] { complete(problem); });
        CHECK(code == ErrorCode::kInvalidProblem);
        CHECK(text.c_str() == doctest::Contains(value));
    };
    refuses("q_heads 0", [](DecodeProblem& p) { p.q_heads = 0; });
    refuses("q_heads -32", [](DecodeProblem& p) { p.q_heads = -32; });
    refuses("q_heads 36", [](DecodeProblem& p) { p.q_heads = 36; });
    refuses("kv_heads 0", [](DecodeProblem& p) { p.kv_heads = 0; });
    refuses("kv_heads -8", [](DecodeProblem& p) { p.kv_heads = -8; });
    refuses("kv_heads 64", [](DecodeProblem& p) { p.kv_heads = 64; });
    refuses("group 65", [](DecodeProblem& p) { p.q_heads = 65, p.kv_heads = 1; });
    for (const int dim : {-128, 1, 32, 80, 112, 127, 160, 512}) {
        const std::string text = "head dim " + std::to_string(dim);
        refuses(text.c_str(), [&](DecodeProblem& p) { p.head_dim = dim; });
        refuses(text.c_str(), [&](DecodeProblem& p) { p.head_dim_v = dim; });
    }
    refuses("head dim 0", [](DecodeProblem& p) { p.head_dim = 0; });
    refuses("7", [](DecodeProblem& p) { p.dtype = static_cast<DType>(7); });
    for (const int page : {-1, 2, 8, 48, 256}) {
        const std::string text = "page size " + std::to_string(page);
        refuses(text.c_str(), [&](DecodeProblem& p) { p.page_size = page; });
    }
    refuses("scale nan", [&](DecodeProblem& p) { p.scale = nan; });
    refuses("scale inf", [&](DecodeProblem& p) { p.scale = infinity; });
    refuses("softcap -1.0", [](DecodeProblem& p) { p.softcap = -1; });
    refuses("softcap nan", [&](DecodeProblem& p) { p.softcap = nan; });
    refuses("softcap inf", [&](DecodeProblem& p) { p.softcap = infinity; });
}

TEST_CASE("tiles: why_illegal names the field and its value") {
    const Limits limits = support::offline_limits("sm_90a");
    const DecodeProblem problem = problem_of(64, 64, 4);
    const DecodeConfig good = {.mainloop = Mainloop::mma, .warps = 4, .producers = 2, .block_kv = 64, .stages = 3, .blocks = 1};
    CHECK(why_illegal(problem, good, limits) == "");
    const auto says = [&](const char* words, const std::function<void(DecodeConfig&)>& spoil) {
        DecodeConfig config = good;
        spoil(config);
        CHECK(why_illegal(problem, config, limits).c_str() == doctest::Contains(words));
    };
    for (const int bad : {-4, 0, 3, 16}) {
        says(("warps " + std::to_string(bad)).c_str(), [&](DecodeConfig& c) { c.warps = bad; });
        says(("producers " + std::to_string(bad)).c_str(), [&](DecodeConfig& c) { c.producers = bad; });
        says(("block_kv " + std::to_string(bad)).c_str(), [&](DecodeConfig& c) { c.block_kv = bad; });
    }
    says("producers 1", [](DecodeConfig& c) { c.producers = 1; });  // 64 keys for one copy warp
    for (const int bad : {-1, 0, 1, 17}) says(("stages " + std::to_string(bad)).c_str(), [&](DecodeConfig& c) { c.stages = bad; });
    for (const int bad : {-1, 0, 5}) says(("blocks " + std::to_string(bad)).c_str(), [&](DecodeConfig& c) { c.blocks = bad; });
    says("split -1", [](DecodeConfig& c) { c.split = -1; });
}

TEST_CASE("tiles: what does not fit an SM is refused with what it needs and what there is") {
    const Limits ada = support::offline_limits("sm_89"), hopper = support::offline_limits("sm_90a");
    const DecodeProblem problem = problem_of(128, 128, 4);
    // 4 stages of 64 keys x (128 + 128) x 2 bytes are 128 KiB already.
    const DecodeConfig deep = {.mainloop = Mainloop::mma, .warps = 4, .producers = 4, .block_kv = 64, .stages = 4, .blocks = 1};
    const std::string needs = std::to_string(abi::decode_shared_bytes(shape_of(problem, deep)));
    CHECK(abi::decode_shared_bytes(shape_of(problem, deep)) > 128 * 1024);
    CHECK(why_illegal(problem, deep, hopper) == "");
    CHECK(why_illegal(problem, deep, ada).c_str() == doctest::Contains(needs.c_str()));
    CHECK(why_illegal(problem, deep, ada).c_str() == doctest::Contains("101376"));  // 99 KiB
    CHECK(why_illegal(problem, deep, ada).c_str() == doctest::Contains("sm_89"));

    // Asked for by the caller: their mistake, with the same numbers. Nothing asked and nothing fits: the device's.
    const auto asked = thrown([&] { choose_config(problem, deep, ada); });
    CHECK(asked.first == ErrorCode::kInvalidProblem);
    CHECK(asked.second.c_str() == doctest::Contains(needs.c_str()));
    Limits tiny = ada;
    tiny.max_shared_block = 4096;
    const auto device = thrown([&] { choose_config(problem, {}, tiny); });
    CHECK(device.first == ErrorCode::kUnsupportedDevice);
    CHECK(device.second.c_str() == doctest::Contains("4096"));

    // Each fits alone, two do not: by shared memory, by registers.
    DecodeConfig twice = deep;
    twice.blocks = 2;
    CHECK(why_illegal(problem, twice, hopper).c_str() == doctest::Contains("2 blocks of"));
    CHECK(why_illegal(problem, twice, hopper).c_str() == doctest::Contains(std::to_string(228 * 1024).c_str()));
    Limits few = hopper;
    few.registers_sm = 16384;
    CHECK(why_illegal(problem, deep, few).c_str() == doctest::Contains("registers a thread"));
}

TEST_CASE("tiles: there is a legal configuration for every head dim, group and SM") {
    int shapes = 0;
    for (const char* target : kTargets) {
        const Limits limits = support::offline_limits(target);
        for (const auto& [dim, dim_v] : {std::pair{64, 64}, {96, 96}, {128, 128}, {192, 192}, {256, 256}, {192, 128}}) {
            for (const int group : {1, 3, 4, 7, 16, 64}) {
                const DecodeProblem problem = problem_of(dim, dim_v, group);
                {
                    CAPTURE(target);
                    CAPTURE(dim);
                    CAPTURE(dim_v);
                    CAPTURE(group);
                    DecodeConfig config;
                    REQUIRE_NOTHROW(config = choose_config(problem, {}, limits));
                    CAPTURE(config.to_string());
                    CHECK(why_illegal(problem, config, limits) == "");
                    const abi::DecodeShape shape = shape_of(problem, config);
                    CHECK(abi::decode_shared_bytes(shape) <= static_cast<unsigned>(limits.max_shared_block));
                    CHECK(abi::decode_block_q(shape) >= static_cast<unsigned>(group));
                    ++shapes;
                }
            }
        }
    }
    CHECK(shapes == 6 * 6 * 6);
}

TEST_CASE("tiles: choose_config keeps every field that is asked for") {
    const Limits limits = support::offline_limits("sm_90a");
    const DecodeProblem problem = problem_of(64, 64, 4);
    for (const int warps : {0, 4, 8}) {
        for (const int block_kv : {0, 32, 64, 128}) {
            for (const int stages : {0, 2, 3}) {
                for (const int blocks : {0, 1}) {
                    const DecodeConfig asked = {
                        .warps = warps, .block_kv = block_kv, .stages = stages, .blocks = blocks, .split = 5};
                    CAPTURE(asked.to_string());
                    DecodeConfig config;
                    REQUIRE_NOTHROW(config = choose_config(problem, asked, limits));
                    CHECK(why_illegal(problem, config, limits) == "");
                    CHECK((warps == 0 || config.warps == warps));
                    CHECK((block_kv == 0 || config.block_kv == block_kv));
                    CHECK((stages == 0 || config.stages == stages));
                    CHECK((blocks == 0 || config.blocks == blocks));
                    CHECK(config.split == 5);
                }
            }
        }
    }
    const auto bad = thrown([&] { choose_config(problem, {.block_kv = 8}, limits); });
    CHECK(bad.first == ErrorCode::kInvalidProblem);
    CHECK(bad.second.c_str() == doctest::Contains("block_kv 8"));
}

TEST_CASE("tiles: e4m3 KV takes half the tile, or a widened one of 64 keys, and half the bytes in plan and model") {
    const Limits limits = support::offline_limits("sm_90a");
    DecodeProblem plain = problem_of(128, 128, 4), bytes = plain;
    bytes.kv_dtype = KvDType::e4m3;
    const DecodeConfig config = {.mainloop = Mainloop::mma, .warps = 4, .producers = 4, .block_kv = 128, .stages = 3, .blocks = 1};
    const abi::DecodeShape wide = shape_of(plain, config), narrow = shape_of(bytes, config);
    CHECK(abi::decode_tile_bytes(narrow) * 2 == abi::decode_tile_bytes(wide));
    CHECK(abi::decode_stage_bytes(narrow) * 2 == abi::decode_stage_bytes(wide));
    // What fits no more in 16 bits does in 8.
    DecodeConfig deep = config;
    deep.stages = 6;
    CHECK(why_illegal(plain, deep, limits) != "");
    CHECK(why_illegal(bytes, deep, limits) == "");
    // Warpgroups find it widened.
    const DecodeConfig warpgroups = choose_config(bytes, {.mainloop = Mainloop::wgmma}, limits);
    CHECK(warpgroups.block_kv == 64);
    CHECK(abi::decode_tile_bytes(shape_of(bytes, warpgroups)) == abi::decode_tile_bytes(shape_of(plain, warpgroups)));
    const auto refused = thrown([&] { choose_config(bytes, {.mainloop = Mainloop::wgmma, .block_kv = 128}, limits); });
    CHECK(refused.second.c_str() == doctest::Contains("kv_dtype fp8_e4m3"));
    CHECK(choose_config(bytes, {}, limits).mainloop == Mainloop::mma);
    const CostModel of_plain = cost_model(plain, config), of_bytes = cost_model(bytes, config);
    CHECK(of_bytes.token_bytes * 2 == of_plain.token_bytes);
    CHECK(of_bytes.token_bytes * of_bytes.values_a_byte == of_plain.token_bytes * of_plain.values_a_byte);
    bytes.kv_dtype = static_cast<KvDType>(3);
    CHECK(thrown([&] { complete(bytes); }).second.c_str() == doctest::Contains("kv_dtype 3"));

    bytes.kv_dtype = KvDType::e4m3;
    const tune::Sizes sizes = {
        .kv_heads = 2, .requests = 8, .unique_tokens = 4096, .path_tokens = 8192, .widest = 8, .longest = 512};
    const tune::Bucket of_16 = tune::bucket_of(plain, sizes), of_8 = tune::bucket_of(bytes, sizes);
    tune::Bucket back;
    REQUIRE(tune::parse_bucket(of_8.to_string(), back));
    CHECK(back == of_8);
    CHECK(!tune::same_code(of_8, of_16));
    CHECK(of_8.to_string().find("/bf16/fp8_e4m3/d128") != std::string::npos);
    CHECK(of_16.to_string().find("fp8") == std::string::npos);
}
