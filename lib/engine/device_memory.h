// SPDX-License-Identifier: Apache-2.0
// Where a plan's buffers live: GPU memory or, for the host target, plain memory. One small interface, so that the engine's code is
// the same for both.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

#include "cuda/device.h"
#include "packed_abi.h"

namespace sapwood {

class Memory {
public:
    virtual ~Memory() = default;
    virtual void* allocate(std::size_t bytes) = 0;  // 256-byte aligned, zeroed before the first launch can see it
    virtual void free(void* pointer) noexcept = 0;
    virtual void copy_in(void* to, const void* from, std::size_t bytes, void* stream) = 0;
    virtual bool capturing(void* stream) = 0;
    /// What a kernel is given of a tensor whose tiles the copy engine copies.
    virtual abi::TensorMap tensor_map(const cuda::TensorView& view) = 0;
};

std::unique_ptr<Memory> host_memory();
std::unique_ptr<Memory> cuda_memory(std::shared_ptr<cuda::Device> device);

}  // namespace sapwood
