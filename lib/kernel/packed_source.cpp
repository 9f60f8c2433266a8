// SPDX-License-Identifier: Apache-2.0
#include "kernel/packed_source.h"

#include "attention/backward_layout.h"
#include "attention/backward_warp_layout.h"

namespace sapwood {

KernelSource packed_forward_source(const KernelKey& key) {
    return {.text = "entry/packed_forward.cu.in",
            .entry = "sapwood_packed_forward",
            .slots = {
                {"element", key.dtype == static_cast<int>(DType::fp16) ? "Fp16" : "Bf16"},
                {"score", score_policy(static_cast<Score>(key.score))},
                {"mainloop", mainloop_name(static_cast<Mainloop>(key.mainloop))},
                {"head_dim", std::to_string(key.head_dim)},
                {"head_dim_v", std::to_string(key.head_dim_v)},
                {"heads", std::to_string(key.group != 0 ? key.group : 1)},
                {"warps", std::to_string(key.warps)},
                {"producers", std::to_string(key.producers)},
                {"block_kv", std::to_string(key.block_kv)},
                {"stages", std::to_string(key.stages)},
                {"arrays", key.mask != 0 ? "true" : "false"},
                {"threads", std::to_string(packed_forward_resources(key).threads)},
                {"blocks", std::to_string(key.blocks)},
            }};
}

KernelResources packed_forward_resources(const KernelKey& key) {
    const abi::PackedShape shape = {key.head_dim,
                                    key.head_dim_v,
                                    key.warps,
                                    key.producers,
                                    key.block_kv,
                                    key.stages,
                                    key.mainloop == static_cast<int>(Mainloop::wgmma)};
    return {.threads = (key.warps + key.producers) * 32u, .shared_bytes = abi::packed_shared_bytes(shape)};
}

KernelSource array_source(const KernelKey& key) {
    const std::string name = family_name(static_cast<Family>(key.family));
    return {.text = "entry/" + name + ".cu.in",
            .entry = "sapwood_" + name,
            .slots = {{"threads", std::to_string(array_resources(key).threads)}}};
}

KernelResources array_resources(const KernelKey&) { return {.threads = abi::kArrayThreads, .shared_bytes = 0}; }

KernelSource packed_backward_source(const KernelKey& key) {
    const std::string name = family_name(static_cast<Family>(key.family));
    KernelSource source = {.text = "entry/" + name + ".cu.in",
                           .entry = "sapwood_" + name,
                           .slots = {
                               {"element", key.dtype == static_cast<int>(DType::fp16) ? "Fp16" : "Bf16"},
                               {"head_dim", std::to_string(key.head_dim)},
                               {"head_dim_v", std::to_string(key.head_dim_v)},
                               {"threads", std::to_string(packed_backward_resources(key).threads)},
                           }};
    if (static_cast<Family>(key.family) == Family::packed_backward) {
        source.slots["score"] = score_policy(static_cast<Score>(key.score));
        source.slots["arrays"] = key.mask != 0 ? "true" : "false";
        source.slots["mainloop"] = mainloop_name(static_cast<Mainloop>(key.mainloop));
        source.slots["stages"] = std::to_string(key.stages);
        source.slots["blocks"] = std::to_string(key.blocks);
        source.slots["order"] = key.fixed_order != 0 ? "FixedOrder" : "AnyOrder";
    } else {
        source.slots["warps"] = std::to_string(key.warps);
    }
    if (static_cast<Family>(key.family) != Family::backward_prepare) source.slots["block_kv"] = std::to_string(key.block_kv);
    return source;
}

KernelResources packed_backward_resources(const KernelKey& key) {
    unsigned shared = 0;
    if (static_cast<Family>(key.family) == Family::packed_backward) {
        shared = static_cast<Mainloop>(key.mainloop) == Mainloop::wgmma
                     ? abi::backward_shared_bytes({key.head_dim, key.head_dim_v})
                     : abi::backward_warp_shared_bytes({key.head_dim, key.head_dim_v, key.block_kv, key.stages});
    }
    return {.threads = (key.warps + key.producers) * 32u, .shared_bytes = shared};
}

}  // namespace sapwood
