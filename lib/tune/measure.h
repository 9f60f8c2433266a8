// SPDX-License-Identifier: Apache-2.0
// What the search asks of a device. The engine implements it for CUDA, tests with a simulated device.
#pragma once

#include <stdexcept>
#include <string>

#include "sapwood/decode.h"

namespace sapwood::tune {

/// Thrown by a Measurer when the device can do nothing more in this process (a sticky CUDA error): the search stops, keeps what it
/// has, and marks the candidate that was at work.
struct DeviceLost : std::runtime_error {
    using std::runtime_error::runtime_error;
};

class Measurer {
public:
    virtual ~Measurer() = default;

    struct Built {
        int registers = 0, spill_bytes = 0;
        std::string failure;  // of the compiler or the loader; empty if the kernel is ready
    };
    /// Compiles (or fetches), loads, and makes ready to launch.
    virtual Built build(const DecodeConfig& config) = 0;
    /// Runs once and compares the result with the first configuration that was checked; empty, or what differs, with numbers.
    virtual std::string check(const DecodeConfig& config) = 0;
    /// One sample: microseconds a call.
    virtual double sample(const DecodeConfig& config) = 0;
    /// Gives back what a candidate holds that will not be sampled again.
    virtual void release(const DecodeConfig&) {}
};

}  // namespace sapwood::tune
