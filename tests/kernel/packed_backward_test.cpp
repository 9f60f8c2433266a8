// SPDX-License-Identifier: Apache-2.0
// Gradients over packs against the fp64 oracle, on the host target and on a GPU if there is one: the same cases.
#include <doctest/doctest.h>

#include <algorithm>
#include <functional>
#include <memory>

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

    /// Of the output that is there: see PackedScene::run.
    void run(const Target& target, const PackedBackwardOptions& options) {
        for (auto* values : {&dq, &dk, &dv}) std::fill(values->begin(), values->end(), support::kNan16);
        PackedBackwardPlan plan = target.engine->plan_packed_backward(scene.which.problem, scene.pack, options);
        PackedGradients call = {.q = scene.q.data(),
                                .k = scene.k.data(),
                                .v = scene.v.data(),
                                .out = scene.out.data(),
                                .dout = dout.data(),
                                .lse = scene.lse.data(),
                                .dlse = with_dlse ? dlse.data() : nullptr,
                                .dq = dq.data(),
                                .dk = dk.data(),
                                .dv = dv.data()};
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

void all_cases(const Target& target) {
    int ran = 0;
    for (const PackedCase& which : packed_cases()) {
        const std::int32_t dim_v = which.problem.head_dim_v ? which.problem.head_dim_v : which.problem.head_dim;
        // Gaps and a missing LSE are the forward tests' affair.
        if (which.problem.head_dim > 128 || which.problem.head_dim == 96 || dim_v > 128 || which.padded || !which.lse) continue;
        Gradients gradients(which, ++ran % 2 == 0);
        gradients.scene.run(target);
        const auto want = gradients.wanted();
        for (const bool deterministic : {false, true}) {
            gradients.run(target, {.deterministic = deterministic});
            const std::string fault = gradients.fault(want);
            CHECK_MESSAGE(fault.empty(),
                          which.name << " d" << which.problem.head_dim << " deterministic " << deterministic << ": " << fault);
        }
    }
    CHECK(ran >= 8);
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
