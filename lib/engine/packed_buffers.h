// SPDX-License-Identifier: Apache-2.0
// Device side of a packed plan: its tile lists and its counters, in one allocation.
#pragma once

#include <memory>

#include "engine/device_memory.h"
#include "engine/kernel.h"
#include "plan/packed_plan.h"

namespace sapwood {

class PackedBuffers {
public:
    PackedBuffers(std::shared_ptr<Memory> memory, const PackedPlan::Impl& plan, Kernel* kernel, std::uint64_t engine);
    ~PackedBuffers();
    PackedBuffers(const PackedBuffers&) = delete;
    PackedBuffers& operator=(const PackedBuffers&) = delete;

    bool uploaded() const noexcept { return uploaded_; }
    void upload(const PackedPlan::Impl& plan, void* stream);
    /// The parameter block with everything but the tensors.
    const abi::PackedForwardParams& base() const noexcept { return base_; }
    Kernel* kernel() const noexcept { return kernel_; }
    std::uint64_t engine() const noexcept { return engine_; }

private:
    std::shared_ptr<Memory> memory_;
    Kernel* kernel_;
    std::uint64_t engine_;
    void* block_ = nullptr;
    abi::PackedForwardParams base_{};
    bool uploaded_ = false;
};

/// Checks the tensors of a call and fills them into `params`. Throws kInvalidArgument naming the tensor.
void bind(const PackedPlan::Impl& plan, const PackedTensors& tensors, Memory& memory, abi::PackedForwardParams& params);

}  // namespace sapwood
