// SPDX-License-Identifier: Apache-2.0
#include <sapwood/sapwood.h>

#include <cstdio>

int main() {
    sapwood::Engine engine({.target = "host"});  // "auto" is the GPU if there is one; pointers are device pointers then
    const sapwood::Node nodes[] = {{-1, 1000, 0}, {0, 20, 1000}, {0, 50, 1020}};  // a prompt and two answers to it
    const auto forest = sapwood::Forest::from_nodes(nodes);                       // a request on each leaf
    auto plan = engine.plan_decode({.q_heads = 8, .kv_heads = 2, .head_dim = 64, .dtype = sapwood::DType::fp16}, forest);

    std::vector<std::uint16_t> q(2 * 8 * 64, 0), k(1070 * 2 * 64, 0x3c00), v = k, out(q.size());  // 0x3c00 is 1.0
    std::vector<float> lse(2 * 8);
    engine.launch(plan, {.q = q.data(), .k = k.data(), .v = v.data(), .out = out.data(), .lse = lse.data()});
    for (int r = 0; r < 2; ++r)
        std::printf("request %d: %d keys, lse %.4f, out %#x\n", r, int(forest.path_tokens(r)), lse[r * 8], out[r * 512]);
}
