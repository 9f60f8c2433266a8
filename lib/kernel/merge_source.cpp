// SPDX-License-Identifier: Apache-2.0
#include "kernel/merge_source.h"

#include "base/error.h"
#include "merge_abi.h"

namespace sapwood {
namespace {

const char* element(std::uint8_t dtype) {
    switch (static_cast<StateDType>(dtype)) {
        case StateDType::fp16:
            return "Fp16";
        case StateDType::bf16:
            return "Bf16";
        case StateDType::fp32:
            return "Fp32";
    }
    raise(ErrorCode::kInternal, "unknown element type " + std::to_string(dtype) + " in a merge key");
}

}  // namespace

KernelSource merge_source(const KernelKey& key) {
    return {.text = "entry/merge.cu.in",
            .entry = "sapwood_merge",
            .slots = {
                {"part", element(key.dtype)},
                {"out", element(key.out_dtype)},
                {"head_dim", std::to_string(key.head_dim)},
                {"separate", key.separate != 0 ? "true" : "false"},
                {"loads", std::to_string(key.stages)},
            }};
}

KernelResources merge_resources(const KernelKey&) { return {.threads = abi::kMergeThreads, .shared_bytes = 0}; }

}  // namespace sapwood
