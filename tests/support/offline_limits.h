// SPDX-License-Identifier: Apache-2.0
// Limits of an SM's usual board, for planning without it: what engine/target makes of the same table.
#pragma once

#include <string>

#include "cuda/sm_table.h"
#include "plan/limits.h"

namespace sapwood::support {

inline Limits offline_limits(const std::string& target) {
    const cuda::DeviceInfo info = cuda::offline_device(target);
    return {.target = target,
            .sm = info.major * 10 + info.minor,
            .sms = info.sms,
            .max_shared_block = info.max_shared_per_block_optin,
            .max_shared_sm = info.max_shared_per_sm,
            .reserved_shared_block = info.reserved_shared_per_block,
            .registers_sm = info.max_registers_per_sm};
}

}  // namespace sapwood::support
