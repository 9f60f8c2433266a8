// SPDX-License-Identifier: Apache-2.0
// Packed attention forward against the fp64 oracle, on the host target and on a GPU if there is one: the same cases.
#include <doctest/doctest.h>

#include <cstring>

#include "kernel/packed_cases.h"
#include "support/gpu.h"

using namespace sapwood;
using namespace sapwood::test;

namespace {

void all_cases(const Target& target) {
    for (const PackedCase& which : packed_cases()) check_forward(target, which);
}

}  // namespace

TEST_CASE("packed on host: every shape, mask and main loop against the oracle") { all_cases(host_target()); }
TEST_CASE("packed on gpu: every shape, mask and main loop against the oracle") {
    if (support::gpu_available()) all_cases(gpu_target());
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
