// SPDX-License-Identifier: Apache-2.0
#include "kernel/array_cases.h"

#include <algorithm>
#include <limits>
#include <random>

namespace sapwood::test {
namespace {

using Limits32 = std::numeric_limits<std::int32_t>;
constexpr PackedConfig kWarps = {.mainloop = Mainloop::mma};
constexpr PackedMask kArrays = {.causal = true, .dfs_arrays = true};

PackedProblem shape(DType dtype, std::int32_t dim, std::int32_t dim_v, std::int32_t q_heads, std::int32_t kv_heads,
                    float softcap = 0) {
    return {q_heads, kv_heads, dim, dim_v, dtype, 0, softcap};
}

std::vector<std::int32_t> any_values(std::mt19937& random, std::int32_t count, std::int32_t low, std::int32_t high,
                                     std::int32_t longest) {
    std::vector<std::int32_t> values;
    while (static_cast<std::int32_t>(values.size()) < count) {
        const std::int32_t value = std::uniform_int_distribution<std::int32_t>(low, high)(random);
        const std::int32_t left = count - static_cast<std::int32_t>(values.size());
        const std::int32_t stretch = std::min(left, std::uniform_int_distribution<std::int32_t>(1, longest)(random));
        values.insert(values.end(), static_cast<std::size_t>(stretch), value);
    }
    return values;
}

/// More spans than a block has room for: stretches of keys that all rows see between stretches that only some see.
PackedCase crowded() {
    PackedCase which = {"more spans than room", shape(DType::bf16, 64, 0, 1, 1), {}, {0, 20}, {0, 12000}, kArrays};
    which.config = {.mainloop = Mainloop::wgmma, .block_kv = 64};
    for (std::int32_t row = 0; row < 20; ++row) which.start_q.push_back(row % 2);
    for (std::int32_t key = 0; key < 12000; ++key) which.end_k.push_back((11999 - key) / 64 % 2 == 1 ? 1 : key % 3 - 1);
    return which;
}

PackedCase nobody() {
    PackedCase which = {"nobody sees anything", shape(DType::bf16, 64, 0, 2, 1), {}, {0, 140}, {0, 140}, kArrays};
    which.start_q.assign(140, 1);
    which.end_k.assign(140, 0);
    return which;
}

}  // namespace

std::vector<Segment> random_trees(std::uint32_t seed, std::int64_t tokens, std::int64_t longest) {
    std::mt19937 engine(seed);
    const auto random = [&](std::int64_t low, std::int64_t high) {
        return std::uniform_int_distribution<std::int64_t>(low, high)(engine);
    };
    std::vector<Segment> segments;
    std::vector<std::int32_t> path;
    while (tokens > 0) {
        const std::int64_t up = random(0, 9) == 0 ? static_cast<std::int64_t>(path.size()) : random(0, 2);
        for (std::int64_t i = 0; i < up && !path.empty(); ++i) path.pop_back();
        const std::int64_t length = std::min(tokens, random(0, longest));
        segments.push_back({path.empty() ? -1 : path.back(), length});
        path.push_back(static_cast<std::int32_t>(segments.size()) - 1);
        tokens -= length;
    }
    return segments;
}

PackedCase as_arrays(PackedCase which, std::int32_t first, bool global) {
    support::DfsArrays arrays = support::arrays_of(which.segments, first, global);
    which.segments.clear();
    which.cu_q = which.cu_k = std::move(arrays.cu);
    which.start_q = std::move(arrays.start_q), which.end_k = std::move(arrays.end_k);
    which.mask = kArrays;
    return which;
}

PackedCase with_any_arrays(PackedCase which, std::uint32_t seed, std::int32_t low, std::int32_t high, std::int32_t longest) {
    std::mt19937 random(seed);
    which.mask.causal = which.mask.dfs_arrays = true;
    which.start_q = any_values(random, which.cu_q.back(), low, high, longest);
    which.end_k = any_values(random, which.cu_k.back(), low, high, longest);
    return which;
}

const std::vector<PackedCase>& array_cases() {
    using D = DType;
    static const std::vector<PackedCase> cases = {
        as_arrays({"trees", shape(D::bf16, 128, 0, 4, 2), random_trees(1, 700, 150)}),
        as_arrays({"trees", shape(D::fp16, 64, 0, 3, 1, 20), random_trees(2, 600, 90), {}, {}, {}, {}, true}, -900, true),
        as_arrays({"crumbs of trees", shape(D::bf16, 64, 0, 2, 1), random_trees(3, 500, 7)}, 1 << 30, true),
        as_arrays({"a long tree", shape(D::bf16, 64, 0, 1, 1), {{-1, 1100}, {0, 333}, {0, 410}, {2, 37}, {2, 290}, {0, 128}}}),
        as_arrays({"a block with nothing left of one part", shape(D::bf16, 64, 0, 1, 1), {{-1, 128}, {0, 128}, {0, 1700}}}),
        as_arrays({"wide", shape(D::bf16, 192, 128, 2, 1), random_trees(4, 400, 120)}),
        as_arrays({"wide", shape(D::fp16, 256, 0, 2, 1), random_trees(13, 300, 60)}),
        as_arrays({"warps: trees", shape(D::bf16, 128, 0, 4, 2), random_trees(14, 600, 150), {}, {}, {}, kWarps}),
        as_arrays({"warps: trees", shape(D::fp16, 96, 0, 2, 1), random_trees(7, 400, 60)}, -3),
        as_arrays({"warps: wide", shape(D::bf16, 256, 0, 2, 1), random_trees(14, 300, 60), {}, {}, {}, kWarps}),
        with_any_arrays({"no trees", shape(D::bf16, 128, 0, 2, 1), {}, {0, 150, 150, 390}, {0, 40, 60, 460}}, 1, -3, 3, 50),
        with_any_arrays({"no trees, token by token", shape(D::fp16, 64, 0, 2, 2), {}, {0, 200, 330}, {0, 333, 420}}, 2, -2, 2, 1),
        with_any_arrays({"the ends of the range", shape(D::bf16, 128, 0, 2, 1), {}, {0, 300}, {0, 290}}, 3, Limits32::min(),
                        Limits32::max(), 40),
        with_any_arrays({"warps: no trees", shape(D::bf16, 128, 0, 2, 1), {}, {0, 100, 260}, {0, 20, 310}, {}, kWarps}, 4, 0, 3,
                        30),
        with_any_arrays({"a window as well", shape(D::bf16, 64, 0, 2, 1), {}, {0, 170, 310}, {0, 260, 410}, {.window_left = 90}}, 5,
                        0, 3, 30),
        nobody(),
        // One query a sequence and groups of heads: FlashAttention-2 folds them into rows and reads start_q out of bounds.
        with_any_arrays({"one query each", shape(D::bf16, 128, 0, 8, 2), {}, {0, 1, 2, 3}, {0, 90, 300, 305}}, 7, 0, 2, 20),
        as_arrays(
            {"a batch of one length", shape(D::fp16, 128, 0, 2, 1), {{-1, 40}, {0, 30}, {0, 26}, {-1, 90}, {3, 6}, {-1, 96}}}),
        crowded(),
    };
    return cases;
}

}  // namespace sapwood::test
