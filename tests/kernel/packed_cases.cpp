// SPDX-License-Identifier: Apache-2.0
#include "kernel/packed_cases.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "support/compare.h"
#include "support/half.h"
#include "support/rng.h"

namespace sapwood::test {
namespace {

using support::Stream;

constexpr std::uint64_t kSeed = 31;
constexpr std::int64_t kGap = 8;

constexpr PackedConfig kWarps = {.mainloop = Mainloop::mma};
constexpr PackedConfig shared_by(std::int32_t heads, Mainloop mainloop) { return {.mainloop = mainloop, .heads = heads}; }

/// A prompt with ragged responses, one of them a tree; a lone token; a sequence by itself; segments that are empty.
std::vector<Segment> ragged() {
    return {{-1, 150}, {0, 70}, {0, 1}, {2, 129}, {2, 3}, {0, 0}, {5, 40}, {-1, 1}, {-1, 0}, {-1, 77}, {9, 2}, {9, 131}};
}
/// Nothing needs a mask but the diagonal.
std::vector<Segment> aligned() { return {{-1, 256}, {0, 128}, {0, 256}}; }
/// Many segments in one tile.
std::vector<Segment> crumbs() {
    std::vector<Segment> all = {{-1, 20}};
    for (int i = 0; i < 90; ++i) all.push_back({i % 3 == 2 ? i : 0, 1 + i % 4});
    return all;
}

PackedProblem shape(DType dtype, std::int32_t dim, std::int32_t dim_v, std::int32_t q_heads, std::int32_t kv_heads, float scale = 0,
                    float softcap = 0) {
    return {q_heads, kv_heads, dim, dim_v, dtype, scale, softcap};
}

}  // namespace

Pack PackedCase::pack() const { return cu_q.empty() ? Pack::from_segments(segments) : Pack::from_cu_seqlens(cu_q, cu_k, mask); }
oracle::Sees PackedCase::sees() const {
    if (cu_q.empty()) return oracle::sees_segments(segments);
    const oracle::Sees sequences = oracle::sees_sequences(cu_q, cu_k, mask);
    return mask.dfs_arrays ? oracle::sees_arrays(sequences, start_q, end_k) : sequences;
}

const std::vector<PackedCase>& packed_cases() {
    using D = DType;
    static const std::vector<PackedCase> cases = {
        {"ragged trees", shape(D::bf16, 128, 0, 4, 2), ragged()},
        {"ragged trees", shape(D::fp16, 64, 0, 3, 1, 0, 20), ragged(), {}, {}, {}, {}, true},
        {"aligned", shape(D::fp16, 128, 0, 2, 2, -0.1f), aligned()},
        {"crumbs", shape(D::bf16, 64, 0, 2, 1), crumbs(), {}, {}, {}, {}, false, false},
        {"wide", shape(D::bf16, 192, 128, 2, 1), ragged()},
        {"wide", shape(D::fp16, 192, 0, 2, 1), aligned()},
        {"wide", shape(D::bf16, 256, 0, 2, 1), ragged(), {}, {}, {}, {}, true},
        {"a prompt in parts", shape(D::bf16, 64, 0, 1, 1), {{-1, 130}, {0, 600}, {0, 610}, {0, 590}}},
        {"one token", shape(D::bf16, 128, 0, 2, 1), {{-1, 1}}},
        {"causal, more rows than keys", shape(D::bf16, 128, 0, 2, 1), {}, {0, 150, 150, 290}, {0, 40, 60, 260}, {.causal = true}},
        {"windows", shape(D::fp16, 128, 0, 2, 1), {}, {0, 300, 310}, {0, 290, 410}, {.causal = true, .window_left = 37}},
        {"both sides", shape(D::bf16, 64, 0, 2, 2), {}, {0, 200}, {0, 333}, {.window_left = 100, .window_right = 9}},
        {"everything", shape(D::fp16, 128, 0, 2, 1), {}, {0, 130, 200}, {0, 257, 257}, {}},
        {"warps: ragged trees", shape(D::bf16, 128, 0, 4, 2), ragged(), {}, {}, {}, kWarps},
        {"warps: ragged trees", shape(D::fp16, 64, 0, 2, 1, 0, 30), ragged(), {}, {}, {}, kWarps, true},
        {"warps: ragged trees", shape(D::fp16, 96, 0, 2, 1), ragged()},
        {"warps: wide", shape(D::bf16, 192, 128, 2, 1), crumbs(), {}, {}, {}, kWarps},
        {"warps: wide", shape(D::fp16, 256, 0, 2, 1, -0.05f), ragged(), {}, {}, {}, kWarps},
        {"warps: windows",
         shape(D::bf16, 128, 0, 2, 1),
         {},
         {0, 100, 260},
         {0, 20, 260},
         {.causal = true, .window_left = 50},
         kWarps},
    };
    return cases;
}

const std::vector<PackedCase>& shared_heads_cases() {
    using D = DType;
    static const std::vector<PackedCase> cases = {
        {"two heads", shape(D::bf16, 128, 0, 4, 2), ragged(), {}, {}, {}, shared_by(2, Mainloop::wgmma), true},
        {"eight heads, windows",
         shape(D::fp16, 64, 0, 8, 1, 0, 20),
         {},
         {0, 9, 60},
         {0, 200, 290},
         {.causal = true, .window_left = 90},
         shared_by(8, Mainloop::wgmma)},
        {"four heads, warps", shape(D::bf16, 96, 0, 4, 1), crumbs(), {}, {}, {}, shared_by(4, Mainloop::mma), true},
    };
    return cases;
}

const std::vector<PackedCase>& backward_tile_cases() {
    using D = DType;
    const auto tiles = [](std::int32_t keys, std::int32_t stages, std::int32_t blocks = 1) {
        return PackedConfig{.mainloop = Mainloop::mma, .block_kv = keys, .stages = stages, .blocks = blocks};
    };
    static const std::vector<PackedCase> cases = {
        {"two blocks an SM", shape(D::bf16, 64, 0, 3, 1, 0, 25), ragged(), {}, {}, {}, tiles(64, 2, 2)},
        {"one stage", shape(D::fp16, 64, 0, 2, 1), crumbs(), {}, {}, {}, tiles(128, 1)},
        {"windows",
         shape(D::fp16, 96, 0, 2, 1),
         {},
         {0, 300, 310},
         {0, 290, 410},
         {.causal = true, .window_left = 37},
         tiles(64, 2)},
        {"ragged trees", shape(D::bf16, 96, 64, 2, 2, -0.1f), ragged(), {}, {}, {}, tiles(128, 2)},
        {"ragged trees", shape(D::bf16, 128, 0, 4, 2), ragged(), {}, {}, {}, tiles(64, 1)},
        {"a prompt in parts", shape(D::bf16, 64, 0, 1, 1), {{-1, 130}, {0, 600}, {0, 610}, {0, 590}}, {}, {}, {}, tiles(64, 2)},
        {"both sides",
         shape(D::fp16, 192, 128, 2, 2, 0, 30),
         {},
         {0, 200},
         {0, 333},
         {.window_left = 100, .window_right = 9},
         tiles(64, 1)},
        {"more rows than keys",
         shape(D::bf16, 192, 0, 2, 1),
         {},
         {0, 150, 150, 290},
         {0, 40, 60, 260},
         {.causal = true},
         tiles(32, 1)},
        {"everything", shape(D::fp16, 256, 0, 2, 1), {}, {0, 130, 200}, {0, 257, 257}, {}, tiles(64, 1)},
        {"ragged trees", shape(D::bf16, 256, 0, 2, 1, 0, 20), ragged(), {}, {}, {}, tiles(32, 1)},
        {"half tiles in parts", shape(D::fp16, 256, 0, 1, 1), {{-1, 40}, {0, 700}, {0, 801}, {0, 60}}, {}, {}, {}, tiles(32, 1)},
    };
    return cases;
}

PackedScene::PackedScene(const PackedCase& given) : which(given), pack(which.pack()) {
    const PackedProblem& p = which.problem;
    const std::int64_t dim_v = p.head_dim_v ? p.head_dim_v : p.head_dim;
    const auto make = [&](std::vector<std::uint16_t>& values, std::int64_t rows, std::int64_t heads, std::int64_t dim, int stream,
                          std::int64_t& token_stride, std::int64_t& head_stride) {
        const std::int64_t head = which.padded ? dim + kGap : dim, token = heads * head + (which.padded ? 2 * kGap : 0);
        if (which.padded) token_stride = token, head_stride = head;
        values.assign(static_cast<std::size_t>(std::max<std::int64_t>(rows * token, 8)), support::kNan16);
        for (std::int64_t i = 0; stream >= 0 && i < rows * heads * dim; ++i)
            values[static_cast<std::size_t>(i / (heads * dim) * token + i / dim % heads * head + i % dim)] =
                support::round_to(p.dtype, support::value(kSeed, static_cast<Stream>(stream), static_cast<std::uint64_t>(i)));
        return values.data();
    };
    tensors.q =
        make(q, pack.rows(), p.q_heads, p.head_dim, static_cast<int>(Stream::q), tensors.q_token_stride, tensors.q_head_stride);
    tensors.k =
        make(k, pack.keys(), p.kv_heads, p.head_dim, static_cast<int>(Stream::k), tensors.k_token_stride, tensors.k_head_stride);
    tensors.v = make(v, pack.keys(), p.kv_heads, dim_v, static_cast<int>(Stream::v), tensors.v_token_stride, tensors.v_head_stride);
    tensors.out = make(out, pack.rows(), p.q_heads, dim_v, -1, tensors.out_token_stride, tensors.out_head_stride);
    if (which.lse) lse.resize(static_cast<std::size_t>(pack.rows() * p.q_heads));
    if (which.lse) tensors.lse = lse.data();
    if (which.mask.dfs_arrays) tensors.start_q = which.start_q.data(), tensors.end_k = which.end_k.data();
    poison();
}

void PackedScene::poison() {
    std::fill(out.begin(), out.end(), support::kNan16);
    std::fill(lse.begin(), lse.end(), std::numeric_limits<float>::quiet_NaN());
}

PackedPlanInfo PackedScene::run(const Target& target) {
    poison();
    PackedPlan plan = target.engine->plan_packed(which.problem, pack, which.config);
    if (target.device == nullptr) {
        target.engine->launch(plan, tensors);
        return plan.info();
    }
    std::vector<std::uint64_t> owned;
    PackedTensors there = tensors;
    const auto place = [&](const auto& values) {
        owned.push_back(target.device->allocate(values.size() * sizeof(values[0])));
        target.device->copy_to_device(owned.back(), values.data(), values.size() * sizeof(values[0]), nullptr);
        return reinterpret_cast<void*>(owned.back());
    };
    there.q = place(q), there.k = place(k), there.v = place(v), there.out = place(out);
    if (which.lse) there.lse = static_cast<float*>(place(lse));
    if (which.mask.dfs_arrays) {
        there.start_q = static_cast<const std::int32_t*>(place(which.start_q));
        there.end_k = static_cast<const std::int32_t*>(place(which.end_k));
    }
    target.engine->launch(plan, there);
    target.device->copy_to_host(out.data(), owned[3], out.size() * 2, nullptr);
    if (which.lse) target.device->copy_to_host(lse.data(), owned[4], lse.size() * 4, nullptr);
    for (const std::uint64_t pointer : owned) target.device->free(pointer);
    return plan.info();
}

std::string PackedScene::fault() const {
    const PackedProblem& p = which.problem;
    const oracle::PackedResult want = oracle::packed_forward(p, tensors, pack.rows(), pack.keys(), which.sees());
    const std::int64_t dim = p.head_dim_v ? p.head_dim_v : p.head_dim, heads = p.q_heads;
    const std::int64_t head = which.padded ? dim + kGap : dim, token = heads * head + (which.padded ? 2 * kGap : 0);
    std::vector<double> got(want.out.size()), got_lse(lse.begin(), lse.end());
    double worst = 0;
    for (std::size_t i = 0; i < got.size(); ++i) {
        const auto at = static_cast<std::int64_t>(i);
        got[i] =
            support::widen(p.dtype, out[static_cast<std::size_t>(at / (heads * dim) * token + at / dim % heads * head + at % dim)]);
    }
    const auto row = static_cast<std::size_t>(dim);
    for (std::size_t i = 0; i < got.size(); i += row)
        worst = std::max(worst, support::relative_error(std::span(got).subspan(i, row), std::span(want.out).subspan(i, row)));
    const double all = support::relative_error(got, want.out);
    const double lse_error = which.lse ? support::max_abs_error(got_lse, want.lse) : 0;
    const auto written = std::count_if(out.begin(), out.end(), [](std::uint16_t x) { return x != support::kNan16; });
    std::string text;
    if (!(all <= support::tolerance(p.dtype) && worst <= 4 * support::tolerance(p.dtype) && lse_error <= 1e-3))
        text = "out error " + std::to_string(all) + ", worst row " + std::to_string(worst) + ", lse error " +
               std::to_string(lse_error);
    if (written != static_cast<std::int64_t>(got.size()))
        text += " " + std::to_string(written) + " elements of out were written, there are " + std::to_string(got.size());
    return text;
}

std::string refusal(Engine& engine, PackedPlan& plan, const PackedScene& scene, const std::function<void(PackedTensors&)>& change) {
    PackedTensors tensors = scene.tensors;
    change(tensors);
    try {
        engine.launch(plan, tensors);
    } catch (const Error& error) {
        CHECK(error.code() == ErrorCode::kInvalidArgument);
        return error.what();
    }
    return {};
}

PackedPlanInfo check_forward(const Target& target, const PackedCase& which) {
    PackedScene scene(which);
    const PackedPlanInfo info = scene.run(target);
    const std::string fault = scene.fault();
    CHECK_MESSAGE(fault.empty(), which.name << ", " << info.config.to_string() << ", d" << which.problem.head_dim << "/"
                                            << which.problem.head_dim_v << ": " << fault);
    return info;
}

}  // namespace sapwood::test
