// SPDX-License-Identifier: Apache-2.0
// Gradients over packs against the fp64 oracle, on the host target and on a GPU if there is one: the same cases.
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <map>

#include "kernel/array_cases.h"
#include "kernel/packed_cases.h"
#include "support/compare.h"
#include "support/gpu.h"
#include "support/half.h"
#include "support/rng.h"

using namespace sapwood;
using namespace sapwood::test;

namespace {

using support::Stream;

/// A case of the forward tests, its output, and random gradients of both results.
struct Gradients {
    PackedScene scene;
    bool with_dlse;
    std::vector<std::uint16_t> dout, dq, dk, dv;
    std::vector<float> dlse;
    std::vector<double> dout_wide, dlse_wide;

    Gradients(const PackedCase& which, bool with_lse_gradient) : scene(which), with_dlse(with_lse_gradient) {
        dout.resize(scene.out.size());
        for (std::size_t i = 0; i < dout.size(); ++i) {
            dout[i] = support::round_to(which.problem.dtype, support::value(77, Stream::v, i));
            dout_wide.push_back(static_cast<double>(support::widen(which.problem.dtype, dout[i])));
        }
        for (std::size_t i = 0; with_dlse && i < scene.lse.size(); ++i) {
            dlse.push_back(support::value(77, Stream::k, i));
            dlse_wide.push_back(static_cast<double>(dlse.back()));
        }
        dq.resize(scene.q.size());
        dk.resize(scene.k.size());
        dv.resize(scene.v.size());
    }

    void run(const Target& target) {
        scene.run(target);
        for (auto* values : {&dq, &dk, &dv}) std::fill(values->begin(), values->end(), support::kNan16);
        PackedBackwardPlan plan = target.engine->plan_packed_backward(scene.which.problem, scene.pack);
        launch(target, plan);
    }

    void launch(const Target& target, PackedBackwardPlan& plan) {
        PackedGradients call = {.q = scene.q.data(),
                                .k = scene.k.data(),
                                .v = scene.v.data(),
                                .out = scene.out.data(),
                                .dout = dout.data(),
                                .lse = scene.lse.data(),
                                .dlse = with_dlse ? dlse.data() : nullptr,
                                .dq = dq.data(),
                                .dk = dk.data(),
                                .dv = dv.data(),
                                .start_q = scene.tensors.start_q,
                                .end_k = scene.tensors.end_k};
        if (target.device == nullptr) return target.engine->launch(plan, call);
        std::vector<std::uint64_t> owned;
        const auto place = [&](auto& pointer, const auto& values) {
            if (values.empty()) return;
            owned.push_back(target.device->allocate(values.size() * sizeof(values[0])));
            target.device->copy_to_device(owned.back(), values.data(), values.size() * sizeof(values[0]), nullptr);
            pointer = reinterpret_cast<std::remove_reference_t<decltype(pointer)>>(owned.back());
        };
        place(call.dq, dq), place(call.dk, dk), place(call.dv, dv);
        place(call.q, scene.q), place(call.k, scene.k), place(call.v, scene.v), place(call.out, scene.out), place(call.dout, dout);
        place(call.lse, scene.lse), place(call.dlse, dlse);
        place(call.start_q, scene.which.start_q), place(call.end_k, scene.which.end_k);
        target.engine->launch(plan, call);
        target.device->copy_to_host(dq.data(), owned[0], dq.size() * 2, nullptr);
        target.device->copy_to_host(dk.data(), owned[1], dk.size() * 2, nullptr);
        target.device->copy_to_host(dv.data(), owned[2], dv.size() * 2, nullptr);
        for (const std::uint64_t pointer : owned) target.device->free(pointer);
    }

    std::string fault() const {
        const PackedProblem& p = scene.which.problem;
        const auto want = oracle::packed_backward(p, scene.tensors, scene.pack.rows(), scene.pack.keys(), scene.which.sees(),
                                                  dout_wide, dlse_wide);
        std::string text;
        const auto judge = [&](const char* name, const std::vector<std::uint16_t>& got, const std::vector<double>& wanted) {
            std::vector<double> wide;
            for (std::size_t i = 0; i < wanted.size(); ++i) wide.push_back(static_cast<double>(support::widen(p.dtype, got[i])));
            const double error = support::relative_error(wide, wanted);
            if (!(error <= support::tolerance(p.dtype))) text += std::string(name) + " error " + std::to_string(error) + " ";
        };
        judge("dq", dq, want.dq);
        judge("dk", dk, want.dk);
        judge("dv", dv, want.dv);
        return text;
    }
};

void all_cases(const Target& target, const std::vector<PackedCase>& cases) {
    int ran = 0;
    for (const PackedCase& which : cases) {
        const std::int32_t dim_v = which.problem.head_dim_v ? which.problem.head_dim_v : which.problem.head_dim;
        // Gaps and a missing LSE are the forward tests' affair.
        if (which.problem.head_dim > 128 || which.problem.head_dim == 96 || dim_v > 128 || which.padded || !which.lse) continue;
        Gradients gradients(which, ++ran % 2 == 0);
        gradients.run(target);
        const std::string fault = gradients.fault();
        CHECK_MESSAGE(fault.empty(), which.name << " d" << which.problem.head_dim << ": " << fault);
    }
    CHECK(ran >= 8);
}

}  // namespace

TEST_CASE("packed backward on host: gradients against the oracle") { all_cases(host_target(), packed_cases()); }
TEST_CASE("packed backward on gpu: gradients against the oracle") {
    if (support::gpu_available()) all_cases(gpu_target(), packed_cases());
}

TEST_CASE("packed backward on host: start_q and end_k, of trees and of none, against the oracle") {
    all_cases(host_target(), array_cases());
}
TEST_CASE("packed backward on gpu: start_q and end_k, of trees and of none, against the oracle") {
    if (support::gpu_available()) all_cases(gpu_target(), array_cases());
}

TEST_CASE("packed backward on host: a tree as start_q and end_k is the tree as segments") {
    const PackedCase trees = {"", {.q_heads = 2, .kv_heads = 1, .head_dim = 64, .dtype = DType::bf16}, random_trees(31, 500, 110)};
    Gradients segments(trees, true), arrays(as_arrays(trees, -7), true);
    segments.run(host_target());
    arrays.run(host_target());
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
        CHECK(gradients.fault() == "");
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
    gradients.run(host_target());
    CHECK(gradients.fault() == "");
    gradients.scene.tensors.end_k = nullptr;
    PackedBackwardPlan plan = engine.plan_packed_backward(which.problem, gradients.scene.pack);
    CHECK_THROWS_WITH_AS(gradients.launch(host_target(), plan), doctest::Contains("end_k is null"), Error);
}
