// SPDX-License-Identifier: Apache-2.0
#include "kernel/decode_source.h"

#include <bit>

#include "attention/decode_layout.h"
#include "base/error.h"

namespace sapwood {
namespace {

bool e4m3(const KernelKey& key) { return key.kv_dtype == static_cast<int>(KvDType::e4m3); }

bool warpgroups(const KernelKey& key) { return key.mainloop == static_cast<int>(Mainloop::wgmma); }

abi::Mainloop mainloop(const KernelKey& key) { return warpgroups(key) ? abi::Mainloop::wgmma : abi::Mainloop::mma; }

std::uint32_t threads(const KernelKey& key) { return (key.warps + key.producers) * 32u; }

}  // namespace

bool takes_tensor_maps(const KernelKey& key) { return warpgroups(key) && !e4m3(key); }

KernelSource decode_source(const KernelKey& key) {
    const std::string kv_source = key.page_size == 0
                                      ? "ContiguousKv"
                                      : "PagedKv<" + std::to_string(std::countr_zero(static_cast<unsigned>(key.page_size))) + ">";
    return {.text = "entry/decode.cu.in",
            .entry = "sapwood_decode",
            .slots = {
                {"element", key.dtype == static_cast<int>(DType::fp16) ? "Fp16" : "Bf16"},
                {"kv_element", e4m3(key) ? "E4m3Kv" : "SameKv<Element>"},
                {"kv_source", kv_source},
                {"score", score_policy(static_cast<Score>(key.score))},
                {"mainloop", mainloop_name(static_cast<Mainloop>(key.mainloop))},
                {"params", takes_tensor_maps(key) ? "MappedDecodeParams" : "DecodeParams"},
                {"products", warpgroups(key) ? "warpgroup_products" : "warp_products"},
                {"products_type", warpgroups(key) ? "WarpgroupProducts" : "WarpProducts"},
                {"mask", key.mask != 0 ? "true" : "false"},
                {"head_dim", std::to_string(key.head_dim)},
                {"head_dim_v", std::to_string(key.head_dim_v)},
                {"group", std::to_string(key.group)},
                {"warps", std::to_string(key.warps)},
                {"producers", std::to_string(key.producers)},
                {"block_kv", std::to_string(key.block_kv)},
                {"stages", std::to_string(key.stages)},
                {"threads", std::to_string(threads(key))},
                {"blocks", std::to_string(key.blocks)},
            }};
}

KernelResources decode_resources(const KernelKey& key) {
    const unsigned kv_bytes = abi::decode_tile_element(e4m3(key) ? 1 : 2, mainloop(key));
    const abi::DecodeShape shape = {key.head_dim, key.head_dim_v, key.group,     key.warps, key.producers,
                                    key.block_kv, key.stages,     key.mask != 0, kv_bytes,  mainloop(key)};
    return {.threads = threads(key), .shared_bytes = abi::decode_shared_bytes(shape)};
}

}  // namespace sapwood
