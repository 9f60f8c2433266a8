// SPDX-License-Identifier: Apache-2.0
// Decode and verify over e4m3 K and V with a factor a head: the fp64 oracle reads the same bytes, so tolerances are those of Q's
// type.
#include <doctest/doctest.h>

#include <cstring>

#include "kernel/decode_cases.h"
#include "support/compare.h"
#include "support/gpu.h"
#include "support/half.h"
#include "support/parallel.h"
#include "support/random_drafts.h"

using namespace sapwood;
using namespace sapwood::test;
using support::Dice;

namespace {

DraftMask tree(std::uint64_t seed, std::int32_t count) {
    Dice dice(seed);
    return DraftMask::from_parents(support::random_parents(dice, count));
}
DraftMask bits(std::uint64_t seed, std::int32_t rows, std::int32_t columns) {
    Dice dice(seed);
    return support::random_mask(dice, rows, columns);
}

std::vector<DecodeCase> fp8_cases() {
    constexpr DType fp16 = DType::fp16, bf16 = DType::bf16;
    constexpr Mainloop mma = Mainloop::mma, wgmma = Mainloop::wgmma;
    std::vector<DecodeCase> cases = {
        // Head dims, groups and page sizes: each value of each, every head dim with both types of Q.
        {"shape", fp16, 64, 0, 1, 2, 0, two_roots()},
        {"shape", bf16, 64, 0, 3, 1, 16, chain()},
        {"shape", bf16, 64, 0, 64, 1, 128, two_roots()},
        {"shape", bf16, 96, 0, 5, 1, 1, two_roots()},
        {"shape", fp16, 96, 0, 16, 1, 32, crowded(9)},
        {"shape", fp16, 128, 0, 4, 2, 0, two_roots()},
        {"shape", bf16, 128, 0, 4, 3, 1, crowded(41)},
        {"shape", fp16, 128, 0, 1, 3, 64, crowded(131)},
        {"shape", bf16, 128, 0, 7, 1, 128, two_roots()},
        {"shape", fp16, 128, 0, 64, 1, 0, crowded(5), {.mainloop = mma}},
        {"shape", bf16, 192, 0, 1, 2, 64, two_roots()},
        {"shape", fp16, 192, 0, 7, 1, 1, crowded(20)},
        {"shape", bf16, 192, 128, 4, 1, 1, chain()},
        {"shape", fp16, 192, 128, 16, 1, 32, two_roots()},
        {"shape", fp16, 64, 96, 8, 1, 0, two_roots()},
        {"shape", fp16, 256, 0, 4, 1, 16, two_roots()},
        {"shape", bf16, 256, 0, 64, 1, 0, two_roots()},
        // Tiles: every width of them, many stages, one chunk at a time.
        {"narrow pair", bf16, 64, 0, 4, 2, 16, two_roots(), {.warps = 4, .blocks = 2}},
        {"short tiles", fp16, 128, 0, 7, 1, 1, chain(), {.warps = 4, .block_kv = 32}},
        {"short tiles", bf16, 96, 0, 1, 1, 0, crowded(130), {.warps = 8, .block_kv = 32}},
        {"long tiles", bf16, 128, 0, 4, 1, 64, chain(), {.warps = 8, .block_kv = 128}},
        {"deep", fp16, 128, 0, 16, 1, 16, two_roots(), {.warps = 4, .block_kv = 64, .stages = 10}},
        // Widened on the way to warpgroups.
        {"warpgroup", fp16, 128, 0, 4, 2, 0, two_roots(), {.mainloop = wgmma}},
        {"warpgroup", bf16, 128, 0, 4, 2, 1, crowded(41), {.mainloop = wgmma}},
        {"warpgroup", fp16, 64, 0, 64, 1, 128, two_roots(), {.mainloop = wgmma}, Layout::hnd},
        {"warpgroup, split", bf16, 64, 128, 3, 1, 16, chain(), {.mainloop = wgmma, .split = 6}, Layout::padded},
        {"warpgroup, soft-cap", bf16, 128, 64, 16, 1, 64, crowded(36), {.mainloop = wgmma}, Layout::nhd, 0, 2.5f},
        // Scores: the keys' factor goes with the scale, before a soft-cap.
        {"steep", fp16, 128, 0, 4, 1, 0, crowded(36), {}, Layout::nhd, 2},
        {"scale below zero", bf16, 64, 0, 4, 2, 0, two_roots(), {}, Layout::nhd, -0.125f},
        {"soft-cap", fp16, 128, 0, 4, 2, 1, two_roots(), {}, Layout::nhd, 0, 2.5f},
        {"soft-cap and scale", bf16, 256, 0, 5, 1, 0, crowded(7), {}, Layout::nhd, 0.25f, 30},
        // Strides, lengths, partial results.
        {"heads first", bf16, 128, 0, 4, 2, 0, crowded(20), {}, Layout::hnd},
        {"padded", fp16, 128, 0, 5, 2, 0, two_roots(), {}, Layout::padded},
        {"padded", bf16, 96, 0, 4, 3, 1, chain(), {}, Layout::padded},
        {"no lse, split", bf16, 128, 0, 4, 2, 0, two_roots(), {.split = 4}, Layout::nhd, 0, 0, false},
        {"split", fp16, 64, 0, 4, 2, 16, two_roots(), {.split = 7}},
        {"split", bf16, 192, 128, 4, 2, 1, lone(700), {.split = 5}},
        {"one key", fp16, 128, 0, 4, 2, 0, lone(1), {}, Layout::nhd, 0, 0, true, 0},
        {"long", bf16, 128, 0, 4, 1, 1, lone(1999), {.warps = 4, .block_kv = 32, .split = 12}, Layout::nhd, 0, 0, true, 0},
    };
    const std::size_t plain = cases.size();
    const Tree two = {{-1, 133, 0}, {-1, 61, 1}, {0, 0, 0}};
    cases.insert(cases.end(), {{"drafts", fp16, 128, 0, 4, 2, 0, two, {.mainloop = mma}},
                               {"drafts", bf16, 128, 0, 8, 1, 16, two, {.mainloop = mma}},
                               {"drafts", bf16, 64, 0, 1, 2, 1, two},
                               {"drafts", bf16, 192, 128, 3, 1, 32, two},
                               {"drafts", fp16, 256, 0, 4, 1, 0, two},
                               {"drafts, long tiles", bf16, 96, 0, 7, 1, 16, two, {.warps = 4, .block_kv = 128}},
                               {"drafts, split", bf16, 128, 0, 4, 2, 1, two, {.mainloop = mma, .split = 7}},
                               {"drafts, warpgroup", bf16, 128, 0, 4, 2, 16, two, {.mainloop = wgmma, .split = 3}},
                               {"drafts, warpgroup", fp16, 64, 0, 8, 1, 1, two, {.mainloop = wgmma}},
                               {"drafts, soft-cap", fp16, 128, 0, 4, 2, 1, two, {}, Layout::padded, 0, 2.5f}});
    for (std::size_t i = plain; i < cases.size(); ++i)
        cases[i].drafts = {{0, tree(1, 37)}, {1, tree(2, 1)}, {2, bits(3, 20, 33)}, {-1, tree(4, 18)}, {0, tree(5, 5)}};
    for (DecodeCase& which : cases) which.kv_dtype = KvDType::e4m3;
    return cases;
}

DecodeCase small_fp8(DType dtype = DType::bf16) {
    DecodeCase which = small_case(dtype);
    which.kv_dtype = KvDType::e4m3;
    return which;
}

void matches_oracle(const Target& target) {
    const std::vector<DecodeCase> cases = fp8_cases();
    support::parallel_for(static_cast<std::int64_t>(cases.size()), 1, [&](std::int64_t begin, std::int64_t) {
        DecodePlan plan = plan_of(target, Scene(cases[static_cast<std::size_t>(begin)]));
        target.engine->prepare(plan);  // compilers run side by side
    });
    for (const DecodeCase& which : cases) {
        CAPTURE(which.to_string());
        Scene scene(which);
        DecodePlan plan = plan_of(target, scene);
        if (which.config.mainloop != Mainloop::choose) CHECK(plan.info().config.mainloop == which.config.mainloop);
        if (which.config.split > 0 && which.drafts.empty()) CHECK(plan.info().partial_rows > 0);
        Bound(target, scene).run(plan);
        CHECK(scene.fault() == "");
    }
}

/// Each of the 254 finite bytes in K and in V: none converts to anything but itself, for either type of Q.
void every_byte_counts(const Target& target) {
    for (const DType dtype : {DType::fp16, DType::bf16}) {
        CAPTURE(dtype_name(dtype));
        DecodeCase which = small_fp8(dtype);
        which.page_size = 0;
        which.tree = lone(509);
        which.scale = 0.002f;  // keys up to 448
        Scene scene(which);
        std::uint32_t number = 0;
        for (std::vector<std::uint8_t>* pool : {&scene.k, &scene.v}) {
            for (std::uint8_t& byte : *pool) {
                if ((byte & 0x7f) == 0x7f) continue;  // nobody's
                byte = static_cast<std::uint8_t>(number * 5 % 127 | (number / 127 % 2) << 7);
                ++number;
            }
        }
        run_once(target, scene);
        CHECK(scene.fault() == "");
    }
}

/// A query beyond what fp16 holds, against keys small enough: bf16 keeps its range.
void bf16_keeps_its_range(const Target& target) {
    DecodeCase which = small_fp8(DType::bf16);
    which.scale = 0x1p-21f;
    Scene scene(which);
    for (std::uint16_t& x : scene.q)
        if (x != support::kNan16 && (x & 0x7f80) != 0) x = static_cast<std::uint16_t>(x + (20 << 7));  // times 2^20
    run_once(target, scene);
    CHECK(scene.fault() == "");
}

/// Without factors, and with those of one tensor alone.
void scales_are_optional(const Target& target) {
    for (const bool of_k : {false, true}) {
        for (const bool of_v : {false, true}) {
            CAPTURE(of_k);
            CAPTURE(of_v);
            Scene scene(small_fp8(DType::fp16));
            if (!of_k) scene.tensors.k_scale = nullptr;
            if (!of_v) scene.tensors.v_scale = nullptr;
            run_once(target, scene);
            CHECK(scene.fault() == "");
        }
    }
}

void launches_repeat(const Target& target) {
    for (const std::int32_t split : {0, 8}) {
        DecodeCase which = small_fp8();
        which.config.split = split;
        Scene scene(which);
        DecodePlan plan = plan_of(target, scene);
        Bound bound(target, scene);
        bound.run(plan);
        CHECK(scene.fault() == "");
        const Scene first = scene;
        for (int launch = 2; launch <= 4; ++launch) {
            bound.run(plan);
            CHECK(scene.same_bits(first));
        }
    }
}

}  // namespace

SAPWOOD_ON_BOTH("fp8 KV: every case matches the oracle", matches_oracle)
SAPWOOD_ON_BOTH("fp8 KV: every byte value counts for what it is", every_byte_counts)
SAPWOOD_ON_BOTH("fp8 KV: a bf16 query keeps its range", bf16_keeps_its_range)
SAPWOOD_ON_BOTH("fp8 KV: factors are optional", scales_are_optional)
SAPWOOD_ON_BOTH("fp8 KV: launches repeat to the bit", launches_repeat)

TEST_CASE("decode on host: fp8 KV: six thread schedules give the same bits") {
    DecodeCase split = small_fp8(DType::fp16), draft = small_fp8();
    split.config.split = 6;
    draft.drafts = {{0, tree(1, 37)}, {1, bits(2, 20, 33)}};
    for (const DecodeCase& which : {split, draft}) {
        Scene in_order(which);
        run_once(host_target(), in_order);
        CHECK(in_order.fault() == "");
        for (std::uint64_t seed = 1; seed <= 6; ++seed) {
            CAPTURE(seed);
            Engine engine(host_options(seed));
            Scene scene(which);
            run_once({&engine, nullptr}, scene);
            CHECK(scene.same_bits(in_order));
        }
    }
}

TEST_CASE("decode on host: fp8 KV: what does not fit is refused with the reason") {
    Engine& engine = *host_target().engine;
    const auto refusal = [](const auto& call) -> std::string {
        try {
            call();
        } catch (const Error& error) {
            return error.what();
        }
        return "";
    };
    const auto plan_with = [&](const DecodeCase& which) { return refusal([&] { (void)plan_of(host_target(), Scene(which)); }); };
    DecodeCase wgmma = small_fp8();
    wgmma.config = {.mainloop = Mainloop::wgmma, .block_kv = 128};
    CHECK(plan_with(wgmma).find("widens kv_dtype fp8_e4m3 on the way to shared memory, tiles of 64 keys, not 128") !=
          std::string::npos);
    Scene plain(small_case()), bytes(small_fp8());
    DecodePlan plan = plan_of(host_target(), plain), other = plan_of(host_target(), bytes);
    const float one = 1;
    DecodeTensors tensors = plain.tensors;
    tensors.v_scale = &one;
    CHECK(refusal([&] { engine.launch(plan, tensors); }).find("v_scale is given, but the plan's K and V are as_q") !=
          std::string::npos);
    tensors = bytes.tensors;
    tensors.k_head_stride = 128 + 8;
    CHECK(refusal([&] { engine.launch(other, tensors); }).find("is 136 elements; it must be a positive multiple of 16") !=
          std::string::npos);
}
