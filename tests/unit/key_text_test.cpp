// SPDX-License-Identifier: Apache-2.0
#include "kernel/key_text.h"

#include <doctest/doctest.h>

#include "sapwood/error.h"

using namespace sapwood;

TEST_CASE("key text: e4m3 KV is named, KV of Q's type is not") {
    const std::string text = "decode/bf16/fp8_e4m3/d128/v128/g4/page16/cap0/mma/w8/p4/kv64/s6/b1/sm_120a";
    const KernelKey key = parse_key(text);
    CHECK(key.to_string() == text);
    CHECK(problem_of(key).kv_dtype == KvDType::e4m3);
    const KernelKey plain = parse_key("decode/bf16/d128/v128/g4/page16/cap0/mma/w8/p4/kv64/s6/b1/sm_120a");
    CHECK(problem_of(plain).kv_dtype == KvDType::as_q);
    CHECK(!(key == plain));
    CHECK(!same_problem(key, plain));
    for (const char* bad : {"decode/bf16/as_q/d128/v128/g4/page16/cap0/mma/w8/p4/kv64/s6/b1/sm_120a",
                            "decode/fp8_e4m3/d128/v128/g4/page16/cap0/mma/w8/p4/kv64/s6/b1/sm_120a",
                            "decode/bf16/fp8_e5m2/d128/v128/g4/page16/cap0/mma/w8/p4/kv64/s6/b1/sm_120a"})
        CHECK_THROWS_AS(parse_key(bad), Error);
}

TEST_CASE("key text: kernels of packs with arrays, and those that make their tile lists") {
    const std::string text = "packed_forward/bf16/d128/v128/cap0/arrays/wgmma/w8/p4/kv128/s2/b1/sm_90a";
    const KernelKey key = parse_key(text);
    CHECK(key.to_string() == text);
    CHECK(!(key == parse_key("packed_forward/bf16/d128/v128/cap0/wgmma/w8/p4/kv128/s2/b1/sm_90a")));
    for (const Family family : {Family::array_bounds, Family::forward_tiles, Family::backward_tiles}) {
        const KernelKey made = array_key(family, "sm_120a");
        CHECK(made.to_string() == std::string(family_name(family)) + "/sm_120a");
        CHECK(parse_key(made.to_string()) == made);
    }
    CHECK_THROWS_AS(parse_key("array_bounds/d128/sm_90a"), Error);
}

TEST_CASE("key text: every key comes back from its text, and nothing else does") {
    for (const DType dtype : {DType::fp16, DType::bf16}) {
        for (const int page : {0, 1, 128}) {
            for (const float softcap : {0.f, 30.f}) {
                for (const float scale : {0.1f, -0.1f}) {
                    const DecodeProblem problem = {.q_heads = 64,
                                                   .kv_heads = 4,
                                                   .head_dim = 192,
                                                   .head_dim_v = 128,
                                                   .dtype = dtype,
                                                   .page_size = page,
                                                   .scale = scale,
                                                   .softcap = softcap};
                    const KernelKey key = decode_key(
                        problem,
                        {.mainloop = Mainloop::wgmma, .warps = 8, .producers = 4, .block_kv = 128, .stages = 12, .blocks = 2},
                        "sm_120a");
                    CHECK(parse_key(key.to_string()) == key);
                    const KernelKey again = decode_key(problem_of(key), config_of(key), "sm_120a");
                    CHECK(again == key);
                }
            }
        }
    }
    const std::string good = "decode/bf16/d128/v128/g4/page16/cap0/mma/w8/p4/kv64/s6/b1/sm_90a";
    CHECK(parse_key(good).to_string() == good);
    for (std::size_t at = 0; at < good.size(); ++at) {
        std::string bad = good;
        bad.erase(at, 1);
        try {
            const std::string back = parse_key(bad).to_string();
            CHECK(back == bad);  // "d18" is a key that nothing can run, but a key
        } catch (const Error& error) {
            CHECK(error.code() == ErrorCode::kInvalidArgument);
        }
    }
    for (const char* bad : {"", "decode", "decode/bf16/d128/v128/g4/page16/cap0/mma/w8/p4/kv64/s6/b1/sm_90a/", "/d1//",
                            "decode/bf16/d128/v128/g4/page16/cap0/mma/w264/p4/kv64/s6/b1/sm_90a"})
        CHECK_THROWS_AS(parse_key(bad), Error);
}

TEST_CASE("key text: a merge's key has its types, dim, source of parts and loads in flight, and comes back") {
    for (const StateDType part : {StateDType::fp16, StateDType::bf16, StateDType::fp32}) {
        for (const StateDType out : {StateDType::fp16, StateDType::bf16, StateDType::fp32}) {
            for (const MergeLayout layout : {MergeLayout::rows_parts, MergeLayout::parts_rows, MergeLayout::separate}) {
                for (const int parts : {2, 40}) {
                    const KernelKey key = merge_key({.heads = 32,
                                                     .head_dim = 512,
                                                     .part_dtype = part,
                                                     .out_dtype = out,
                                                     .layout = layout,
                                                     .usual_parts = parts},
                                                    "sm_120a");
                    CHECK(parse_key(key.to_string()) == key);
                }
            }
        }
    }
    const MergeProblem problem = {.heads = 32, .head_dim = 128, .part_dtype = StateDType::fp32, .layout = MergeLayout::separate};
    CHECK(merge_key(problem, "sm_90a").to_string() == "merge/fp32/bf16/d128/separate/f4/sm_90a");
    MergeProblem same = problem;  // what is an argument of the kernel
    same.heads = 1, same.lse_base = LseBase::two;
    CHECK(merge_key(same, "sm_90a") == merge_key(problem, "sm_90a"));
    for (const char* bad : {"merge", "merge/bf16", "merge/bf16/bf16/d128/stacked/f4", "merge/bf16/bf16/d128/stacked/f5/sm_90a",
                            "merge/int8/bf16/d128/stacked/f4/sm_90a", "merge/bf16/bf16/d128/listed/f4/sm_90a",
                            "merge/bf16/bf16/d65664/stacked/f4/sm_90a", "merge/bf16/bf16/d128/stacked/f4/sm_90a/"})
        CHECK_THROWS_AS(parse_key(bad), Error);
}
