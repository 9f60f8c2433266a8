// SPDX-License-Identifier: Apache-2.0
// What a board is doing, for the provenance of a measurement. libnvidia-ml is loaded if it is there; nothing needs it.
#pragma once

#include <string>

namespace sapwood::cuda {

struct BoardState {
    std::string driver, uuid;          // empty if not known
    std::string throttle = "unknown";  // "none", or reasons with commas
    int sm_mhz = 0, memory_mhz = 0, power_limit_w = 0;
};

/// Of the CUDA device `ordinal`. Where the driver shows other devices than NVML (CUDA_VISIBLE_DEVICES), nothing but the driver's
/// version is said: it might be of another board.
BoardState board_state(int ordinal, const std::string& name);

}  // namespace sapwood::cuda
