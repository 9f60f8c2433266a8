// SPDX-License-Identifier: Apache-2.0
#include "sapwood/types.h"

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

}  // namespace sapwood
