// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <string>

namespace sapwood {

/// What planning needs to know of a device: plain numbers, so that a plan can be made for a device that is not here.
struct Limits {
    std::string target;        // "sm_90a", "host"
    int sm = 0;                // 90; the SM that the host target imitates
    int sms = 0;               // multiprocessors
    int max_shared_block = 0;  // bytes a block may use
    int max_shared_sm = 0;     // bytes a multiprocessor has
    int reserved_shared_block = 1024;
    int registers_sm = 65536;
};

/// What costs are counted by, whatever the device: an H100's 3.0 TB/s.
inline constexpr double kHbmBytesPerMicrosecond = 3.0e6;

}  // namespace sapwood
