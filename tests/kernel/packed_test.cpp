// SPDX-License-Identifier: Apache-2.0
// Packed attention forward against the fp64 oracle, on the host target and on a GPU if there is one: the same cases.
#include <doctest/doctest.h>

#include <cstring>
#include <utility>

#include "kernel/packed_cases.h"
#include "support/gpu.h"
#include "support/half.h"

using namespace sapwood;
using namespace sapwood::test;

namespace {

void all_cases(const Target& target) {
    for (const PackedCase& which : packed_cases()) check_forward(target, which);
    for (const PackedCase& which : shared_heads_cases()) CHECK(check_forward(target, which).config.heads == which.config.heads);
}

/// Keys by thirds: scores of one third are of another size than those of the next, so that weights made with the maximum of the
/// tiles before are infinite, large, right or zero.
void scores_of_all_sizes(const Target& target) {
    const float sizes[][3] = {{150, 8, 0.05f}, {0.05f, 8, 150}, {8, 150, 8}};
    const PackedMask causal = {.causal = true};
    for (const Mainloop mainloop : {Mainloop::choose, Mainloop::mma}) {
        for (const auto& [dtype, dim] : {std::pair(DType::bf16, 128), std::pair(DType::fp16, 64)}) {
            for (const auto& size : sizes) {
                const PackedProblem problem = {.q_heads = 1, .kv_heads = 1, .head_dim = dim, .dtype = dtype};
                PackedScene scene(
                    {.problem = problem, .cu_q = {0, 130}, .cu_k = {0, 400}, .mask = causal, .config = {.mainloop = mainloop}});
                for (std::size_t i = 0; i < scene.k.size(); ++i) {
                    const auto third = i * 3 / scene.k.size();
                    scene.k[i] = support::round_to(dtype, support::widen(dtype, scene.k[i]) * size[third]);
                }
                scene.run(target);
                CHECK_MESSAGE(scene.fault() == "", "K times " << size[0] << ", " << size[1] << ", " << size[2] << ", main loop "
                                                              << static_cast<int>(mainloop) << ", dim " << dim);
            }
        }
    }
}

}  // namespace

TEST_CASE("packed on host: every shape, mask and main loop against the oracle") { all_cases(host_target()); }
TEST_CASE("packed on gpu: every shape, mask and main loop against the oracle") {
    if (support::gpu_available()) all_cases(gpu_target());
}

TEST_CASE("packed on host: scores that outgrow those before, and that others outgrow") { scores_of_all_sizes(host_target()); }
TEST_CASE("packed on gpu: scores that outgrow those before, and that others outgrow") {
    if (support::gpu_available()) scores_of_all_sizes(gpu_target());
}

TEST_CASE("packed on host: results do not depend on the order in which threads run") {
    for (const PackedCase& which : {packed_cases()[0], packed_cases()[13]}) {
        PackedScene first(which), other(which);
        first.run(host_target());
        for (const std::uint64_t seed : {5, 6}) {
            Engine engine(host_options(seed));
            other.run({&engine, nullptr});
            CHECK(first.out == other.out);
            CHECK(std::memcmp(first.lse.data(), other.lse.data(), first.lse.size() * sizeof(float)) == 0);
        }
    }
}

TEST_CASE("packed: what cannot be bound is refused by name before anything runs") {
    PackedScene scene(packed_cases()[0]);
    Engine& engine = *host_target().engine;
    PackedPlan plan = engine.plan_packed(scene.which.problem, scene.pack);
    const auto refused = [&](auto&& change) { return refusal(engine, plan, scene, change); };
    CHECK(refused([](PackedTensors& t) { t.k = nullptr; }).find("k is null") != std::string::npos);
    CHECK(refused([](PackedTensors& t) { t.q_token_stride = 12; }).find("q_token_stride is 12 elements") != std::string::npos);
    CHECK(refused([](PackedTensors& t) { t.out_head_stride = 64; }).find("out has a head or token stride below its head dim 128") !=
          std::string::npos);
}
