// SPDX-License-Identifier: Apache-2.0
// The backward pass by mma.sync: its block sizes, and what cannot be.
#include <doctest/doctest.h>

#include "kernel/packed_gradients.h"
#include "support/gpu.h"

using namespace sapwood;
using namespace sapwood::test;

namespace {

/// As sums come and in a fixed order; the host, whose compiler takes long, has one of the two each.
void all_tiles(const Target& target) {
    int ran = 0;
    for (const PackedCase& which : backward_tile_cases()) {
        PackedCase forward = which;
        forward.config = {};
        std::vector<PackedBackwardOptions> ways = {{.config = which.config}, {.deterministic = true, .config = which.config}};
        if (target.device == nullptr) ways.erase(ways.begin() + (ran % 3 == 1 ? 0 : 1));
        check_gradients(target, forward, ways, ++ran % 2 == 0);
    }
    CHECK(ran >= 10);
}

}  // namespace

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
}
