// SPDX-License-Identifier: Apache-2.0
// Packs whose visibility is start_q and end_k, against the fp64 oracle and against the same trees given as segments, on the host
// target and on a GPU if there is one.
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstring>

#include "kernel/array_cases.h"
#include "support/compare.h"
#include "support/gpu.h"
#include "support/half.h"

using namespace sapwood;
using namespace sapwood::test;

namespace {

void all_cases(const Target& target) {
    for (const PackedCase& which : array_cases()) CHECK(check_forward(target, which).dfs_arrays);
}

/// The largest difference of two results of 16-bit elements, over what either may differ from the oracle.
double difference(DType dtype, const std::vector<std::uint16_t>& a, const std::vector<std::uint16_t>& b) {
    std::vector<double> x, y;
    for (std::size_t i = 0; i < a.size(); ++i) {
        x.push_back(static_cast<double>(support::widen(dtype, a[i])));
        y.push_back(static_cast<double>(support::widen(dtype, b[i])));
    }
    return support::relative_error(x, y) / support::tolerance(dtype);
}

PackedCase small(std::vector<Segment> segments) {
    return {"", {.q_heads = 2, .kv_heads = 1, .head_dim = 64, .dtype = DType::bf16}, std::move(segments)};
}

void as_segments(const Target& target) {
    for (const std::uint32_t seed : {11u, 12u, 13u}) {
        const PackedCase trees = small(random_trees(seed, 500, seed == 12 ? 9 : 130));
        PackedScene segments(trees), arrays(as_arrays(trees, static_cast<std::int32_t>(seed), seed == 13));
        segments.run(target);
        arrays.run(target);
        CHECK(difference(DType::bf16, segments.out, arrays.out) <= 1);
        for (std::size_t i = 0; i < segments.lse.size(); ++i) CHECK(std::fabs(segments.lse[i] - arrays.lse[i]) <= 1e-3f);
    }
}

}  // namespace

TEST_CASE("packed on host: start_q and end_k, of trees and of none, against the oracle") { all_cases(host_target()); }
TEST_CASE("packed on gpu: start_q and end_k, of trees and of none, against the oracle") {
    if (support::gpu_available()) all_cases(gpu_target());
}

TEST_CASE("packed on host: a tree as start_q and end_k is the tree as segments") { as_segments(host_target()); }
TEST_CASE("packed on gpu: a tree as start_q and end_k is the tree as segments") {
    if (support::gpu_available()) as_segments(gpu_target());
}

TEST_CASE("packed on host: arrays that change between launches of one plan") {
    const Target target = host_target();
    PackedScene scene(as_arrays(small(random_trees(21, 400, 60))));
    PackedPlan plan = target.engine->plan_packed(scene.which.problem, scene.pack);
    const auto check = [&] {
        scene.poison();
        target.engine->launch(plan, scene.tensors);
        CHECK(scene.fault() == "");
    };
    check();
    // Another tree over the same tokens, in the same memory …
    auto& start = scene.which.start_q;
    auto& end = scene.which.end_k;
    for (std::size_t i = 0; i < start.size(); ++i) start[i] = static_cast<std::int32_t>(i / 40), end[i] = i < 80 ? 100 : start[i];
    check();
    // … and arrays elsewhere, by which no row sees anything.
    const std::vector<std::int32_t> high(start.size(), 5), low(end.size(), -5);
    scene.tensors.start_q = high.data(), scene.tensors.end_k = low.data();
    start = high, end = low;
    scene.poison();
    target.engine->launch(plan, scene.tensors);
    CHECK(std::all_of(scene.out.begin(), scene.out.end(), [](std::uint16_t x) { return x == 0; }));
    CHECK(std::all_of(scene.lse.begin(), scene.lse.end(), [](float x) { return x == -INFINITY; }));
}

TEST_CASE("packed on gpu: arrays that change between replays of a graph") {
    if (!support::gpu_available()) return;
    const Target target = gpu_target();
    cuda::Device& device = *target.device;
    PackedScene scene(as_arrays(small(random_trees(22, 700, 90))));
    PackedPlan plan = target.engine->plan_packed(scene.which.problem, scene.pack);
    std::vector<std::uint64_t> owned;
    const auto place = [&](const auto& values) {
        owned.push_back(device.allocate(values.size() * sizeof(values[0])));
        device.copy_to_device(owned.back(), values.data(), values.size() * sizeof(values[0]), nullptr);
        return reinterpret_cast<void*>(owned.back());
    };
    PackedTensors there = scene.tensors;
    there.q = place(scene.q), there.k = place(scene.k), there.v = place(scene.v), there.out = place(scene.out);
    there.lse = static_cast<float*>(place(scene.lse));
    auto& start = scene.which.start_q;
    auto& end = scene.which.end_k;
    there.start_q = static_cast<const std::int32_t*>(place(start)), there.end_k = static_cast<const std::int32_t*>(place(end));
    void* stream = device.create_stream();
    target.engine->prepare(plan);
    target.engine->upload(plan, stream);
    device.synchronize(stream);
    device.begin_capture(stream);
    target.engine->launch(plan, there, stream);
    void* graph = device.end_capture(stream);
    for (const std::uint32_t seed : {22u, 23u, 24u, 25u}) {
        CAPTURE(seed);
        if (seed > 22) {
            scene.which = with_any_arrays(scene.which, seed, 0, static_cast<std::int32_t>(seed) - 22, 200);
            device.copy_to_device(owned[5], start.data(), start.size() * 4, stream);
            device.copy_to_device(owned[6], end.data(), end.size() * 4, stream);
        }
        scene.poison();
        device.copy_to_device(owned[3], scene.out.data(), scene.out.size() * 2, stream);
        device.launch_graph(graph, stream);
        device.synchronize(stream);
        device.copy_to_host(scene.out.data(), owned[3], scene.out.size() * 2, nullptr);
        device.copy_to_host(scene.lse.data(), owned[4], scene.lse.size() * 4, nullptr);
        CHECK(scene.fault() == "");
    }
    device.destroy_graph(graph);
    device.destroy_stream(stream);
    for (const std::uint64_t pointer : owned) device.free(pointer);
}

TEST_CASE("packed on host: tiles that no row sees are not read") {
    // A prompt and three responses, a tile long each: what a response reads of the others would make it NaN, weight 0 or not.
    PackedScene scene(as_arrays(small({{-1, 256}, {0, 128}, {0, 128}, {0, 128}})));
    const auto poison_keys = [&](std::size_t begin, std::size_t end) {
        for (std::size_t i = begin * 64; i < end * 64; ++i) scene.k[i] = scene.v[i] = support::kNan16;
    };
    poison_keys(256, 512);
    scene.run(host_target());
    const auto finite = [&](std::size_t begin, std::size_t end) {
        return std::all_of(scene.out.begin() + static_cast<std::ptrdiff_t>(begin * 128),
                           scene.out.begin() + static_cast<std::ptrdiff_t>(end * 128),
                           [](std::uint16_t x) { return std::isfinite(support::widen(DType::bf16, x)); });
    };
    CHECK(finite(0, 256));
    CHECK_FALSE(finite(256, 512));
    CHECK(finite(512, 640));
}

TEST_CASE("packed: arrays that are missing, not wanted or not causal are refused by name") {
    Engine& engine = *host_target().engine;
    const PackedCase trees = small({{-1, 40}, {0, 3}});
    PackedScene arrays(as_arrays(trees)), segments(trees);
    const auto refused = [&](PackedScene& scene, auto&& change) {
        PackedPlan plan = engine.plan_packed(scene.which.problem, scene.pack);
        return refusal(engine, plan, scene, change);
    };
    const auto has = [](const std::string& text, const char* part) { return text.find(part) != std::string::npos; };
    CHECK(has(refused(arrays, [](PackedTensors& t) { t.start_q = nullptr; }), "start_q is null"));
    CHECK(has(refused(arrays, [](PackedTensors& t) { t.end_k = nullptr; }), "end_k is null"));
    CHECK(has(refused(arrays, [](PackedTensors& t) { t.end_k = reinterpret_cast<const std::int32_t*>(uintptr_t{6}); }),
              "end_k is at an address that is not a multiple of 4"));
    const std::vector<std::int32_t> values(43);
    CHECK(has(refused(segments, [&](PackedTensors& t) { t.start_q = values.data(); }), "start_q is given"));
    const std::vector<std::int32_t> cu = {0, 43};
    CHECK_THROWS_WITH_AS(Pack::from_cu_seqlens(cu, cu, {.dfs_arrays = true}), doctest::Contains("dfs_arrays needs causal"), Error);
}

TEST_CASE("packed: a pack without arrays has the kernel it had, one with arrays three") {
    Engine engine({.target = "sm_90a", .disk_cache = false});
    const std::vector<std::int32_t> cu = {0, 500};
    const PackedProblem problem = {.q_heads = 2, .kv_heads = 1, .head_dim = 64};
    const auto keys = [&](const PackedMask& mask) {
        return engine.plan_packed(problem, Pack::from_cu_seqlens(cu, cu, mask)).kernel_keys();
    };
    const auto plain = keys({.causal = true}), arrays = keys({.causal = true, .dfs_arrays = true});
    REQUIRE(plain.size() == 1);
    CHECK(plain[0].find("arrays") == std::string::npos);
    REQUIRE(arrays.size() == 3);
    CHECK(arrays[0] == "array_bounds/sm_90a");
    CHECK(arrays[1] == "forward_tiles/sm_90a");
    CHECK(arrays[2].find("/arrays/") != std::string::npos);
}
