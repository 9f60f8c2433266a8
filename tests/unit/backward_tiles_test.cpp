// SPDX-License-Identifier: Apache-2.0
// Which tiles the packed backward kernel takes on each SM, without a GPU.
#include <doctest/doctest.h>

#include "plan/backward_tiles.h"
#include "plan/packed_tiles.h"
#include "sapwood/error.h"
#include "support/offline_limits.h"

using namespace sapwood;

namespace {

PackedProblem shape(std::int32_t dim, std::int32_t dim_v) {
    return complete({.q_heads = 8, .kv_heads = 2, .head_dim = dim, .head_dim_v = dim_v});
}
std::string tiles(std::int32_t dim, std::int32_t dim_v, const char* target) {
    const PackedConfig config = choose_backward_config(shape(dim, dim_v), {}, support::offline_limits(target));
    return std::string(mainloop_name(config.mainloop)) + " " + std::to_string(config.block_kv) + "/" +
           std::to_string(config.stages);
}

}  // namespace

TEST_CASE("backward tiles: wgmma where it is, else the most keys that registers and shared memory hold") {
    CHECK(tiles(128, 128, "sm_90a") == "wgmma 128/2");
    CHECK(tiles(64, 128, "sm_90a") == "wgmma 128/2");
    CHECK(tiles(96, 96, "sm_90a") == "mma 128/2");
    CHECK(tiles(192, 128, "sm_90a") == "mma 64/2");
    CHECK(tiles(256, 256, "sm_90a") == "mma 64/2");
    for (const char* target : {"sm_80", "sm_100a"}) {
        CAPTURE(target);
        CHECK(tiles(64, 64, target) == "mma 128/2");
        CHECK(tiles(96, 96, target) == "mma 128/2");
        CHECK(tiles(128, 128, target) == "mma 128/2");
        CHECK(tiles(192, 128, target) == "mma 64/2");
        CHECK(tiles(192, 192, target) == "mma 64/2");
    }
    CHECK(tiles(256, 256, "sm_80") == "mma 64/1");
    CHECK(tiles(256, 256, "sm_100a") == "mma 64/2");
    for (const char* target : {"sm_86", "sm_89", "sm_120a"}) {
        CAPTURE(target);
        CHECK(tiles(64, 64, target) == "mma 128/2");
        CHECK(tiles(96, 96, target) == "mma 64/2");
        CHECK(tiles(128, 128, target) == "mma 64/1");
        CHECK(tiles(192, 128, target) == "mma 64/1");
        CHECK(tiles(192, 192, target) == "mma 32/1");
        CHECK(tiles(256, 256, target) == "mma 32/1");
    }
}

TEST_CASE("backward tiles: every pair of head dims has some, but 96 with 256 on an SM of 99 KB") {
    for (const char* target : {"sm_80", "sm_86", "sm_89", "sm_90a", "sm_100a", "sm_120a"}) {
        const Limits limits = support::offline_limits(target);
        for (const int dim : {64, 96, 128, 192, 256}) {
            for (const int dim_v : {64, 96, 128, 192, 256}) {
                CAPTURE(target);
                CAPTURE(dim);
                CAPTURE(dim_v);
                const PackedProblem problem = shape(dim, dim_v);
                if (limits.max_shared_block < 100 << 10 && dim + dim_v == 96 + 256) {
                    CHECK_THROWS_AS(choose_backward_config(problem, {.mainloop = Mainloop::mma}, limits), Error);
                    continue;
                }
                const PackedConfig config = choose_backward_config(problem, {.mainloop = Mainloop::mma}, limits);
                CHECK(why_backward_illegal(problem, config, limits).empty());
                CHECK(config.mainloop == Mainloop::mma);
            }
        }
    }
}

TEST_CASE("backward tiles: what an SM has no room for is refused with the bytes") {
    const Limits limits = support::offline_limits("sm_86");
    CHECK(why_backward_illegal(shape(128, 128),
                               {.mainloop = Mainloop::mma, .warps = 8, .producers = 0, .block_kv = 128, .stages = 2, .blocks = 1},
                               limits)
              .find("bytes of shared memory a block, 1 blocks an SM; sm_86 has 101376 a block") != std::string::npos);
    CHECK(why_backward_illegal(shape(128, 128),
                               {.mainloop = Mainloop::wgmma, .warps = 8, .producers = 4, .block_kv = 128, .stages = 2, .blocks = 1},
                               limits)
              .find("mainloop wgmma needs sm_90a (or host), the target is sm_86") != std::string::npos);
}
