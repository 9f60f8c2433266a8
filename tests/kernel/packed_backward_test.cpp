// SPDX-License-Identifier: Apache-2.0
// Gradients over packs against the fp64 oracle, on the host target and on a GPU if there is one: the same cases.
#include <doctest/doctest.h>

#include <algorithm>
#include <map>

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

void all_cases(const Target& target) {
    int ran = 0;
    for (const PackedCase& which : packed_cases()) {
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

TEST_CASE("packed backward on host: gradients against the oracle") { all_cases(host_target()); }
TEST_CASE("packed backward on gpu: gradients against the oracle") {
    if (support::gpu_available()) all_cases(gpu_target());
}
