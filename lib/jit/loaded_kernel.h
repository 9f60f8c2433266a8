// SPDX-License-Identifier: Apache-2.0
// What the engine launches: one loaded kernel, on the GPU or on the host. One by-value parameter block is the whole signature.
#pragma once

#include <cstddef>
#include <cstdint>

namespace sapwood::jit {

struct LaunchShape {
    std::uint32_t grid = 1;          // blocks
    std::uint32_t block = 32;        // threads a block
    std::uint32_t shared_bytes = 0;  // dynamic shared memory a block
    /// May start while the kernel before it on the stream still runs: the kernel waits by itself before it touches what that one
    /// may read or write (programmatic dependent launch). Ignored where the device or the driver has no such thing.
    bool overlap = false;
};

class LoadedKernel {
public:
    virtual ~LoadedKernel() = default;
    /// Enqueues on `stream` (a CUstream; ignored by the host target, which runs to completion). `params` points to the kernel's one
    /// by-value argument of `params_bytes` bytes. No allocation, no lock, no disk.
    virtual void launch(const LaunchShape& shape, const void* params, std::size_t params_bytes, void* stream) = 0;
};

}  // namespace sapwood::jit
