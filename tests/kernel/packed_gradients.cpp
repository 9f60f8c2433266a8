// SPDX-License-Identifier: Apache-2.0
#include "kernel/packed_gradients.h"

#include <doctest/doctest.h>

#include <algorithm>

#include "support/compare.h"
#include "support/half.h"
#include "support/rng.h"

namespace sapwood::test {

using support::Stream;

Gradients::Gradients(const PackedCase& which, bool with_lse_gradient) : scene(which), with_dlse(with_lse_gradient) {
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

void Gradients::run(const Target& target, const PackedBackwardOptions& options) {
    for (auto* values : {&dq, &dk, &dv}) std::fill(values->begin(), values->end(), support::kNan16);
    PackedBackwardPlan plan = target.engine->plan_packed_backward(scene.which.problem, scene.pack, options);
    launch(target, plan);
}

void Gradients::launch(const Target& target, PackedBackwardPlan& plan) {
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

oracle::PackedGradients Gradients::wanted() const {
    return oracle::packed_backward(scene.which.problem, scene.tensors, scene.pack.rows(), scene.pack.keys(), scene.which.sees(),
                                   dout_wide, dlse_wide);
}

std::string Gradients::fault(const oracle::PackedGradients& want) const {
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

void check_gradients(const Target& target, const PackedCase& which, const std::vector<PackedBackwardOptions>& ways,
                     bool with_dlse) {
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

bool wgmma_has_backward(const PackedProblem& p) {
    return p.head_dim % 64 == 0 && p.head_dim <= 128 && (p.head_dim_v == 0 || p.head_dim_v <= 128);
}

}  // namespace sapwood::test
