// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <string>

#include "plan/limits.h"

namespace sapwood::tune {

/// What pruning and ranking need to know of a device, as plain numbers: of one that is here, or of an SM's usual board.
struct DeviceFacts {
    Limits limits;
    std::string name;  // "NVIDIA H100 80GB HBM3"
    int max_threads_sm = 2048;
    std::int64_t l2_bytes = 50'000'000;
    std::int64_t memory_bytes = 0;
    int cuda_driver = 0;  // 13000; 0 where there is none
};

}  // namespace sapwood::tune
