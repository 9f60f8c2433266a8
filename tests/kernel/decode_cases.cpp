// SPDX-License-Identifier: Apache-2.0
#include "kernel/decode_cases.h"

namespace sapwood::test {

Tree two_roots() {
    return {{-1, 75, 0}, {-1, 130, 1}, {0, 0, 0}, {2, 17, 2}, {2, 33, 1}, {1, 1, 3}, {1, 0, 1}, {3, 64, 1}, {-1, 0, 1}, {0, 50, 0}};
}
Tree crowded(std::int32_t requests) { return {{-1, 203, 1}, {0, 90, requests}, {0, 31, 2}, {1, 13, 1}}; }
Tree chain() {
    return {{-1, 70, 0}, {0, 45, 1}, {0, 9, 1}, {1, 100, 1}, {1, 5, 1}, {3, 3, 1}, {3, 29, 1}, {5, 150, 1}, {5, 18, 1}};
}
Tree lone(std::int64_t tokens) { return {{-1, tokens, 1}}; }

const std::vector<DecodeCase>& decode_cases() {
    constexpr DType fp16 = DType::fp16, bf16 = DType::bf16;
    constexpr Mainloop wgmma = Mainloop::wgmma;
    constexpr DecodeConfig wide = {.mainloop = wgmma, .block_kv = 128};
    static const std::vector<DecodeCase> cases = {
        {"plain", fp16, 128, 0, 4, 2, 0, two_roots()},
        {"plain", bf16, 128, 0, 4, 2, 1, crowded(41)},
        // Head dims, groups and page sizes: each value of each more than once, in combinations that differ.
        {"shape", fp16, 64, 0, 1, 2, 0, two_roots()},
        {"shape", bf16, 64, 0, 3, 1, 16, chain()},
        {"shape", fp16, 64, 0, 64, 1, 128, two_roots()},
        {"shape", bf16, 96, 0, 5, 1, 1, two_roots()},
        {"shape", fp16, 96, 0, 16, 1, 32, crowded(9)},
        {"shape", fp16, 128, 0, 1, 3, 64, crowded(131)},
        {"shape", bf16, 128, 0, 3, 2, 32, two_roots()},
        {"shape", fp16, 128, 0, 5, 1, 16, chain()},
        {"shape", bf16, 128, 0, 7, 1, 128, two_roots()},
        {"shape", bf16, 128, 0, 16, 1, 1, two_roots()},
        {"shape", fp16, 128, 0, 64, 1, 0, crowded(5)},
        {"shape", bf16, 192, 0, 1, 2, 64, two_roots()},
        {"shape", fp16, 192, 0, 7, 1, 1, crowded(20)},
        {"shape", bf16, 192, 128, 4, 1, 1, chain()},
        {"shape", fp16, 192, 128, 16, 1, 32, two_roots()},
        {"shape", fp16, 256, 0, 4, 1, 16, two_roots()},
        {"shape", bf16, 256, 0, 64, 1, 0, two_roots()},
        // Tiles.
        {"narrow pair", bf16, 64, 0, 4, 2, 16, two_roots(), {.warps = 4, .blocks = 2}},
        {"narrow", fp16, 128, 0, 4, 1, 0, crowded(20), {.warps = 4, .blocks = 1}},
        {"short tiles", fp16, 128, 0, 7, 1, 1, chain(), {.warps = 4, .block_kv = 32}},
        {"short tiles", bf16, 96, 0, 1, 1, 0, crowded(130), {.warps = 8, .block_kv = 32}},
        {"long tiles", bf16, 128, 0, 4, 1, 64, chain(), {.warps = 8, .block_kv = 128}},
        {"long tiles", fp16, 64, 0, 5, 1, 0, two_roots(), {.warps = 4, .block_kv = 128}},
        {"two stages", fp16, 128, 0, 16, 1, 16, two_roots(), {.warps = 8, .block_kv = 64, .stages = 2}},
        // Warpgroup products, where the target has them: one, two and no spare row blocks of 64, turns over the keys, few tiles.
        {"warpgroup", fp16, 128, 0, 4, 2, 0, two_roots(), {.mainloop = wgmma}},
        {"warpgroup", bf16, 128, 0, 4, 2, 1, crowded(41), {.mainloop = wgmma}},
        {"warpgroup", fp16, 64, 0, 64, 1, 128, two_roots(), {.mainloop = wgmma}},
        {"warpgroup", bf16, 64, 128, 3, 1, 16, chain(), {.mainloop = wgmma, .split = 6}},
        {"warpgroup", fp16, 128, 64, 1, 1, 32, crowded(131), {.mainloop = wgmma, .stages = 2}},
        {"warpgroup, soft-cap", bf16, 128, 0, 16, 1, 64, crowded(36), {.mainloop = wgmma}, Layout::hnd, 0, 2.5f},
        {"warpgroup, in turn", fp16, 64, 0, 4, 1, 1, {{-1, 901, 1}, {0, 20, 39}}, {.mainloop = wgmma}},
        {"warpgroup, wide", fp16, 128, 0, 4, 2, 0, two_roots(), wide},
        {"warpgroup, wide", bf16, 128, 0, 4, 2, 1, crowded(41), wide},
        {"warpgroup, wide", fp16, 64, 0, 64, 1, 128, two_roots(), wide},
        {"warpgroup, wide", bf16, 64, 128, 3, 1, 16, chain(), {.mainloop = wgmma, .block_kv = 128, .split = 6}},
        {"warpgroup, wide", fp16, 128, 64, 1, 1, 32, crowded(131), {.mainloop = wgmma, .block_kv = 128, .stages = 2}},
        {"warpgroup, wide, soft-cap", bf16, 128, 0, 16, 1, 64, crowded(36), wide, Layout::hnd, 0, 2.5f},
        {"warpgroup, wide, in turn", fp16, 64, 0, 4, 1, 1, {{-1, 901, 1}, {0, 20, 39}}, wide},
        {"warpgroup, wide, long", bf16, 128, 0, 4, 1, 1, lone(1999), wide, Layout::nhd, 0, 0, true, 0},
        {"warpgroup, long", bf16, 128, 0, 4, 1, 1, lone(1999), {.mainloop = wgmma, .split = 3}, Layout::nhd, 0, 0, true, 0},
        // Scores.
        {"steep", fp16, 128, 0, 4, 1, 0, crowded(36), {}, Layout::nhd, 2},
        {"scale below zero", bf16, 64, 0, 4, 1, 0, two_roots(), {}, Layout::nhd, -0.125f},
        {"soft-cap", fp16, 128, 0, 4, 1, 1, two_roots(), {}, Layout::nhd, 0, 2.5f},
        {"soft-cap and scale", bf16, 256, 0, 5, 1, 0, crowded(7), {}, Layout::nhd, 0.25f, 30},
        // Strides; without lse.
        {"heads first", bf16, 128, 0, 4, 2, 0, crowded(20), {}, Layout::hnd},
        {"heads first", fp16, 192, 128, 3, 2, 16, two_roots(), {}, Layout::hnd},
        {"padded", fp16, 128, 0, 5, 2, 0, two_roots(), {}, Layout::padded},
        {"padded", bf16, 96, 0, 4, 3, 1, chain(), {}, Layout::padded},
        {"no lse", bf16, 128, 0, 4, 2, 0, two_roots(), {.split = 4}, Layout::nhd, 0, 0, false},
        // Lengths.
        {"one key", fp16, 128, 0, 4, 2, 0, lone(1), {}, Layout::nhd, 0, 0, true, 0},
        {"long", bf16, 128, 0, 4, 1, 1, lone(1999), {.warps = 4, .block_kv = 32, .split = 12}, Layout::nhd, 0, 0, true, 0},
        {"no keys at all", bf16, 128, 0, 4, 2, 0, {{-1, 0, 3}}, {}, Layout::nhd, 0, 0, true, 40},
    };
    return cases;
}

DecodeProblem DecodeCase::problem() const {
    return {.q_heads = group * kv_heads,
            .kv_heads = kv_heads,
            .head_dim = head_dim,
            .head_dim_v = head_dim_v == 0 ? head_dim : head_dim_v,
            .dtype = dtype,
            .kv_dtype = kv_dtype,
            .page_size = page_size,
            .scale = scale,
            .softcap = softcap};
}

std::string DecodeCase::to_string() const {
    std::string text = std::string(name) + ": " + dtype_name(dtype) + (kv_dtype == KvDType::as_q ? "" : " KV fp8_e4m3") + " d" +
                       std::to_string(head_dim);
    if (head_dim_v != 0) text.append("/").append(std::to_string(head_dim_v));
    return text + " group " + std::to_string(group) + " page " + std::to_string(page_size) + " config " + config.to_string();
}

}  // namespace sapwood::test
