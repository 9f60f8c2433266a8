// SPDX-License-Identifier: Apache-2.0
// Gradients over packs against the fp64 oracle, on the host target and on a GPU if there is one: the same cases.
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <memory>

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
        const PackedProblem& p = which.problem;
        const auto size = [](std::int64_t rows, std::int64_t heads, std::int64_t dim) {
            return static_cast<std::size_t>(std::max<std::int64_t>(rows * heads * dim, 8));
        };
        const std::int64_t dim_v = p.head_dim_v ? p.head_dim_v : p.head_dim;
        dout.resize(size(scene.pack.rows(), p.q_heads, dim_v));
        for (std::size_t i = 0; i < dout.size(); ++i) {
            dout[i] = support::round_to(which.problem.dtype, support::value(77, Stream::v, i));
            dout_wide.push_back(static_cast<double>(support::widen(which.problem.dtype, dout[i])));
        }
        for (std::size_t i = 0; with_dlse && i < scene.lse.size(); ++i) {
            dlse.push_back(support::value(77, Stream::k, i));
            dlse_wide.push_back(static_cast<double>(dlse.back()));
        }
        dq.resize(size(scene.pack.rows(), p.q_heads, p.head_dim));
        dk.resize(size(scene.pack.keys(), p.kv_heads, p.head_dim));
        dv.resize(size(scene.pack.keys(), p.kv_heads, dim_v));
    }

    /// Of the output that is there: see PackedScene::run.
    void run(const Target& target, const PackedBackwardOptions& options) {
        for (auto* values : {&dq, &dk, &dv}) std::fill(values->begin(), values->end(), support::kNan16);
        PackedBackwardPlan plan = target.engine->plan_packed_backward(scene.which.problem, scene.pack, options);
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
                                .end_k = scene.tensors.end_k,
                                .q_token_stride = scene.tensors.q_token_stride,
                                .q_head_stride = scene.tensors.q_head_stride,
                                .k_token_stride = scene.tensors.k_token_stride,
                                .k_head_stride = scene.tensors.k_head_stride,
                                .v_token_stride = scene.tensors.v_token_stride,
                                .v_head_stride = scene.tensors.v_head_stride,
                                .out_token_stride = scene.tensors.out_token_stride,
                                .out_head_stride = scene.tensors.out_head_stride};
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

    oracle::PackedGradients wanted() const {
        return oracle::packed_backward(scene.which.problem, scene.tensors, scene.pack.rows(), scene.pack.keys(), scene.which.sees(),
                                       dout_wide, dlse_wide);
    }
    std::string fault(const oracle::PackedGradients& want) const {
        const PackedProblem& p = scene.which.problem;
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

/// Of one forward pass, by each of the ways that are asked.
void check(const Target& target, const PackedCase& which, const std::vector<PackedBackwardOptions>& ways, bool with_dlse) {
    Gradients gradients(which, with_dlse);
    gradients.scene.run(target);
    const auto want = gradients.wanted();
    for (const PackedBackwardOptions& options : ways) {
        gradients.run(target, options);
        const std::string fault = gradients.fault(want);
        CHECK_MESSAGE(fault.empty(), which.name << " d" << which.problem.head_dim << "/" << which.problem.head_dim_v << ", "
                                                << options.config.to_string() << ", deterministic " << options.deterministic << ": "
                                                << fault);
    }
}

/// What has a backward kernel by wgmma.
bool wgmma_has(const PackedProblem& p) {
    return p.head_dim % 64 == 0 && p.head_dim <= 128 && (p.head_dim_v == 0 || p.head_dim_v <= 128);
}

/// Every case by the main loop that is chosen and, where that is another one, by mma.sync.
void all_cases(const Target& target) {
    int ran = 0;
    for (const PackedCase& which : packed_cases()) {
        if (!which.lse) continue;
        check(target, which, {{.config = {.mainloop = which.config.mainloop}}}, ++ran % 2 == 0);
        const bool wgmma = wgmma_has(which.problem);
        if (which.config.mainloop != Mainloop::choose || !wgmma) continue;
        check(target, which, {{.deterministic = true}, {.config = {.mainloop = Mainloop::mma}}}, ran % 2 == 1);
    }
    CHECK(ran >= 16);
}
/// Those with arrays, by wgmma alone.
void all_array_cases(const Target& target) {
    int ran = 0;
    for (const PackedCase& which : array_cases())
        if (which.lse && wgmma_has(which.problem)) check(target, which, {{}}, ++ran % 2 == 0);
    CHECK(ran >= 8);
}
void all_tiles(const Target& target) {
    int ran = 0;
    for (const PackedCase& which : backward_tile_cases()) {
        PackedCase forward = which;
        forward.config = {};
        check(target, forward, {{.config = which.config}}, ++ran % 2 == 0);
    }
    CHECK(ran >= 10);
}

/// Prompts that many blocks add to, in several parts, and heads that share K and V.
PackedCase shared_prompt(std::int32_t prompt, std::int32_t responses, std::int32_t tokens, const PackedProblem& problem) {
    PackedCase which = {"shared prompt", problem, {{-1, prompt}}};
    for (std::int32_t i = 0; i < responses; ++i) which.segments.push_back({0, tokens + i});
    return which;
}
/// Runs with the target of every round; all results must be those of the first, bit by bit.
void same_bits(const PackedCase& which, int rounds, const std::function<Target(int)>& target_of) {
    Gradients gradients(which, true);
    gradients.scene.run(target_of(0));
    std::vector<std::uint16_t> dq, dk, dv;
    for (int round = 0; round < rounds; ++round) {
        gradients.run(target_of(round), {.deterministic = true});
        if (round == 0) dq = gradients.dq, dk = gradients.dk, dv = gradients.dv;
        CAPTURE(round);
        CHECK(gradients.dq == dq);
        CHECK(gradients.dk == dk);
        CHECK(gradients.dv == dv);
    }
}

}  // namespace

/// What `sapwood bench --check` judges packs of any size by: some rows and keys alone, of the out and lse that there are.
void some_rows_and_keys(const PackedCase& which) {
    Gradients gradients(which, false);
    gradients.scene.run(host_target());
    const oracle::PackedGradients all = gradients.wanted();
    const std::vector<std::int64_t> rows = {0, 63, gradients.scene.pack.rows() - 1},
                                    keys = {1, 149, gradients.scene.pack.keys() - 2};
    const auto some = oracle::packed_backward_of(which.problem, gradients.scene.tensors, gradients.scene.pack.rows(),
                                                 gradients.scene.pack.keys(), which.sees(), gradients.dout.data(), rows, keys);
    const auto error = [](const std::vector<double>& got, const std::vector<double>& whole, const std::vector<std::int64_t>& of) {
        std::vector<double> wanted;
        const std::ptrdiff_t width = std::ssize(got) / std::ssize(of);
        for (const std::int64_t i : of) wanted.insert(wanted.end(), whole.begin() + i * width, whole.begin() + (i + 1) * width);
        return support::relative_error(got, wanted);
    };
    CHECK(error(some.dq, all.dq, rows) <= support::tolerance(which.problem.dtype));
    CHECK(error(some.dk, all.dk, keys) <= support::tolerance(which.problem.dtype));
    CHECK(error(some.dv, all.dv, keys) <= support::tolerance(which.problem.dtype));
    CHECK(error(some.dq, all.dq, {1, 64, 100}) > support::tolerance(which.problem.dtype));
}

TEST_CASE("packed backward on host: gradients against the oracle") { all_cases(host_target()); }
TEST_CASE("packed backward on gpu: gradients against the oracle") {
    if (support::gpu_available()) all_cases(gpu_target());
}

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
    PackedProblem narrow = problem;
    narrow.head_dim = 96;
    CHECK_THROWS_WITH_AS(engine.plan_packed_backward(problem, pack, {.deterministic = true}),
                         doctest::Contains("dfs_arrays: its order of additions is the plan's"), Error);
    CHECK_THROWS_WITH_AS(engine.plan_packed_backward(problem, pack, {.config = {.mainloop = Mainloop::mma}}),
                         doctest::Contains("dfs_arrays is made with mainloop wgmma alone"), Error);
    CHECK_THROWS_WITH_AS(engine.plan_packed_backward(narrow, pack), doctest::Contains("head dims 96 and 96 on host"), Error);
    CHECK_NOTHROW(engine.plan_packed_backward(problem, pack));
}

TEST_CASE("packed backward on host: every block size of mma.sync against the oracle") { all_tiles(host_target()); }
TEST_CASE("packed backward on gpu: every block size of mma.sync against the oracle") {
    if (support::gpu_available()) all_tiles(gpu_target());
}

TEST_CASE("packed backward on host: results of mma.sync do not depend on the order in which threads run") {
    for (const PackedCase& which : {backward_tile_cases()[0], backward_tile_cases()[9]}) {
        PackedCase forward = which;
        forward.config = {};
        Gradients first(forward, true), other(forward, true);
        first.scene.run(host_target());
        first.run(host_target(), {.config = which.config});
        for (const std::uint64_t seed : {5, 6}) {
            Engine engine(host_options(seed));
            other.scene.run({&engine, nullptr});
            other.run({&engine, nullptr}, {.config = which.config});
            CHECK(first.dk == other.dk);
            CHECK(first.dv == other.dv);
            CHECK(other.fault(other.wanted()).empty());  // dQ is added up in any order, so its bits may differ
        }
    }
}

TEST_CASE("packed backward: tiles that cannot be are refused with what was asked and what there is") {
    Engine& engine = *host_target().engine;
    const Pack pack = Pack::from_segments(std::vector<Segment>{{-1, 64}});
    const auto refused = [&](PackedProblem problem, const PackedConfig& config) {
        try {
            engine.plan_packed_backward(problem, pack, {.config = config});
        } catch (const Error& error) {
            CHECK(error.code() == ErrorCode::kUnsupportedDevice);
            return std::string(error.what());
        }
        return std::string();
    };
    const PackedProblem narrow = {.q_heads = 1, .kv_heads = 1, .head_dim = 96},
                        wide = {.q_heads = 1, .kv_heads = 1, .head_dim = 256};
    CHECK(refused(narrow, {.mainloop = Mainloop::wgmma}).find("head dims 64 and 128, not 96; leave mainloop open or ask for mma") !=
          std::string::npos);
    CHECK(refused(narrow, {.block_kv = 32}).find("blocks of 32 keys do not divide head dims 96 and 96") != std::string::npos);
    CHECK(refused(wide, {.block_kv = 128}).find("need about") != std::string::npos);
    CHECK(refused(wide, {.producers = 4}).find("no copy warps") != std::string::npos);
    CHECK(refused(wide, {.stages = 3}).find("stages 3 is not 1 or 2") != std::string::npos);
    CHECK_THROWS_WITH_AS(engine.plan_packed_backward(wide, pack, {.deterministic = true}),
                         doctest::Contains("deterministic backward pass is made with mainloop wgmma alone"), Error);
}
TEST_CASE("packed backward on host: deterministic gradients, however blocks and threads are scheduled") {
    // Each engine is a schedule of its own: number of blocks at work at a time, order of a block's threads.
    std::vector<std::unique_ptr<Engine>> engines;
    for (unsigned i = 0; i < 5; ++i) {
        EngineOptions options = host_options(i);
        options.host_threads = 1 + i;
        engines.push_back(std::make_unique<Engine>(options));
    }
    const PackedCase which = shared_prompt(140, 3, 250, {.q_heads = 8, .kv_heads = 1, .head_dim = 64});
    PackedBackwardPlan plan = engines[0]->plan_packed_backward(which.problem, which.pack(), {.deterministic = true});
    CHECK(plan.info().blocks > (which.pack().keys() + 127) / 128);  // or nothing is added up in parts
    same_bits(which, 20, [&](int round) {
        return Target{engines[static_cast<std::size_t>(round) % engines.size()].get(), nullptr};
    });
}
TEST_CASE("packed backward on gpu: deterministic gradients, each time the same bits") {
    if (!support::gpu_available()) return;
    for (const std::int32_t dim : {64, 128})
        same_bits(shared_prompt(2048, 8, 600, {.q_heads = 8, .kv_heads = 2, .head_dim = dim}), 20,
                  [](int) { return gpu_target(); });
}
TEST_CASE("packed backward on host: the oracle of some rows and keys says what that of all says") {
    for (const std::size_t i : {0, 1}) {
        PackedCase which = packed_cases()[i];
        which.padded = false;
        some_rows_and_keys(which);
    }
}
