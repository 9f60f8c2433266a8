// SPDX-License-Identifier: Apache-2.0
#include "sapwood/types.h"

#include "sapwood/merge.h"

namespace sapwood {

const char* dtype_name(DType dtype) noexcept {
    switch (dtype) {
        case DType::fp16:
            return "fp16";
        case DType::bf16:
            return "bf16";
    }
    return "unknown";
}

const char* kv_dtype_name(KvDType dtype) noexcept {
    switch (dtype) {
        case KvDType::as_q:
            return "as_q";
        case KvDType::e4m3:
            return "fp8_e4m3";
    }
    return "unknown";
}

const char* state_dtype_name(StateDType dtype) noexcept {
    switch (dtype) {
        case StateDType::fp16:
            return "fp16";
        case StateDType::bf16:
            return "bf16";
        case StateDType::fp32:
            return "fp32";
    }
    return "unknown";
}

}  // namespace sapwood
