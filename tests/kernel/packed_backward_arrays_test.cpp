// SPDX-License-Identifier: Apache-2.0
// Gradients over packs whose trees are arrays on the device.
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>

#include "kernel/array_cases.h"
#include "kernel/packed_gradients.h"
#include "support/compare.h"
#include "support/gpu.h"
#include "support/half.h"

using namespace sapwood;
using namespace sapwood::test;

namespace {

/// By the case's main loop. Of mma.sync the host has two kernels, 128 keys and 32 with steps of half a row tile: it compiles long.
void all_array_cases(const Target& target) {
    int ran = 0;
    for (const PackedCase& which : array_cases()) {
        const bool asked = which.config.mainloop == Mainloop::mma, wgmma = wgmma_has_backward(which.problem);
        if (!which.lse || (target.device == nullptr && !asked && !wgmma)) continue;
        PackedConfig config = {.mainloop = which.config.mainloop};
        if (asked && !wgmma) config.block_kv = 32;
#if defined(__SANITIZE_ADDRESS__)
        if (asked && !wgmma) continue;  // as in all_cases of packed_backward_test.cpp
#endif
        check_gradients(target, which, {{.config = config}}, ++ran % 2 == 0);
    }
    CHECK(ran >= 14);
}
}  // namespace

TEST_CASE("packed backward on host: start_q and end_k, of trees and of none, against the oracle") {
    all_array_cases(host_target());
}
TEST_CASE("packed backward on gpu: start_q and end_k, of trees and of none, against the oracle") {
    if (support::gpu_available()) all_array_cases(gpu_target());
}

TEST_CASE("packed backward on host: a tree as start_q and end_k is the tree as segments") {
    const PackedCase trees = {"", {.q_heads = 2, .kv_heads = 1, .head_dim = 64, .dtype = DType::bf16}, random_trees(31, 500, 110)};
    Gradients segments(trees, true), arrays(as_arrays(trees, -7), true);
    for (Gradients* gradients : {&segments, &arrays}) {
        gradients->scene.run(host_target());
        gradients->run(host_target(), {});
    }
    const auto apart = [](const std::vector<std::uint16_t>& a, const std::vector<std::uint16_t>& b) {
        std::vector<double> x, y;
        for (const std::uint16_t value : a) x.push_back(static_cast<double>(support::widen(DType::bf16, value)));
        for (const std::uint16_t value : b) y.push_back(static_cast<double>(support::widen(DType::bf16, value)));
        return support::relative_error(x, y);
    };
    CHECK(apart(segments.dq, arrays.dq) <= support::tolerance(DType::bf16));
    CHECK(apart(segments.dk, arrays.dk) <= support::tolerance(DType::bf16));
    CHECK(apart(segments.dv, arrays.dv) <= support::tolerance(DType::bf16));
}

namespace {

void changing_arrays(const Target& target) {
    Gradients gradients(
        as_arrays({"", {.q_heads = 2, .kv_heads = 1, .head_dim = 64, .dtype = DType::bf16}, random_trees(32, 400, 60)}), false);
    PackedBackwardPlan plan = target.engine->plan_packed_backward(gradients.scene.which.problem, gradients.scene.pack);
    const auto check = [&] {
        gradients.scene.run(target);
        for (auto* values : {&gradients.dq, &gradients.dk, &gradients.dv})
            std::fill(values->begin(), values->end(), support::kNan16);
        gradients.launch(target, plan);
        CHECK(gradients.fault(gradients.wanted()) == "");
    };
    check();
    auto& start = gradients.scene.which.start_q;
    auto& end = gradients.scene.which.end_k;
    for (std::size_t i = 0; i < start.size(); ++i) start[i] = static_cast<std::int32_t>(i / 50), end[i] = i < 60 ? 1000 : start[i];
    check();
    std::fill(end.begin(), end.end(), -1);  // nobody sees anything
    check();
    for (const auto* values : {&gradients.dq, &gradients.dk, &gradients.dv})
        CHECK(std::all_of(values->begin(), values->end(), [](std::uint16_t x) { return (x & 0x7fff) == 0; }));
}

}  // namespace

TEST_CASE("packed backward on host: arrays that change between launches of one plan") { changing_arrays(host_target()); }
TEST_CASE("packed backward on gpu: arrays that change between launches of one plan") {
    if (support::gpu_available()) changing_arrays(gpu_target());
}

TEST_CASE("packed backward on host: tiles that no row sees are not read") {
    // The middle response's rows are NaN: what keys of the others read of them would become NaN.
    Gradients gradients(
        as_arrays(
            {"", {.q_heads = 1, .kv_heads = 1, .head_dim = 64, .dtype = DType::bf16}, {{-1, 128}, {-1, 128}, {1, 128}, {1, 128}}}),
        false);
    const Target target = host_target();
    gradients.scene.run(target);
    std::fill(gradients.dout.begin() + 256 * 64, gradients.dout.begin() + 384 * 64, support::kNan16);
    PackedBackwardPlan plan = target.engine->plan_packed_backward(gradients.scene.which.problem, gradients.scene.pack);
    gradients.launch(target, plan);
    const auto finite = [&](const std::vector<std::uint16_t>& values, std::ptrdiff_t begin, std::ptrdiff_t end) {
        return std::all_of(values.begin() + begin * 64, values.begin() + end * 64,
                           [](std::uint16_t x) { return std::isfinite(support::widen(DType::bf16, x)); });
    };
    CHECK(finite(gradients.dv, 0, 128));
    CHECK_FALSE(finite(gradients.dv, 128, 256));  // seen by it
    CHECK_FALSE(finite(gradients.dv, 256, 384));
    CHECK(finite(gradients.dv, 384, 512));
    CHECK(finite(gradients.dk, 384, 512));
    CHECK(finite(gradients.dq, 384, 512));
}

TEST_CASE("packed backward: arrays that are missing are refused by name, a window is the forward pass'") {
    Engine& engine = *host_target().engine;
    PackedCase which = {"", {.q_heads = 2, .kv_heads = 1, .head_dim = 64, .dtype = DType::bf16}, {}, {0, 140}, {0, 140}};
    which.mask.window_left = 20;
    Gradients gradients(with_any_arrays(which, 3, 0, 2, 30), false);
    gradients.scene.run(host_target());
    gradients.run(host_target(), {});
    CHECK(gradients.fault(gradients.wanted()) == "");
    gradients.scene.tensors.end_k = nullptr;
    PackedBackwardPlan plan = engine.plan_packed_backward(which.problem, gradients.scene.pack);
    CHECK_THROWS_WITH_AS(gradients.launch(host_target(), plan), doctest::Contains("end_k is null"), Error);
}

TEST_CASE("packed backward: what there is not over a pack with arrays is refused with what to do") {
    Engine& engine = *host_target().engine;
    const std::vector<std::int32_t> cu = {0, 140};
    const Pack pack = Pack::from_cu_seqlens(cu, cu, {.causal = true, .dfs_arrays = true});
    const PackedProblem problem = {.q_heads = 2, .kv_heads = 1, .head_dim = 64};
    CHECK_THROWS_WITH_AS(engine.plan_packed_backward(problem, pack, {.deterministic = true}),
                         doctest::Contains("dfs_arrays: its order of additions is the plan's"), Error);
    CHECK_THROWS_WITH_AS(engine.plan_packed_backward(problem, pack, {.deterministic = true, .config = {.mainloop = Mainloop::mma}}),
                         doctest::Contains("dfs_arrays: its order of additions is the plan's"), Error);
    CHECK_NOTHROW(engine.plan_packed_backward(problem, pack));
}
