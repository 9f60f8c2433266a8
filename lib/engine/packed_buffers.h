// SPDX-License-Identifier: Apache-2.0
// Device side of a packed plan: its tile lists and its counters, in one allocation.
#pragma once

#include <memory>

#include "engine/device_memory.h"
#include "engine/kernel.h"
#include "plan/packed_plan.h"

namespace sapwood {

/// In the order in which they run. The first two make the tile lists of a pack with arrays; null for others.
struct PackedKernels {
    Kernel *bounds = nullptr, *tiles = nullptr, *main = nullptr;
};
struct PackedArguments {
    abi::ArrayBoundsParams bounds{};
    abi::ForwardTilesParams tiles{};
    abi::PackedForwardParams main{};
};

class PackedBuffers {
public:
    PackedBuffers(std::shared_ptr<Memory> memory, const PackedPlan::Impl& plan, const PackedKernels& kernels, std::uint64_t engine);
    ~PackedBuffers();
    PackedBuffers(const PackedBuffers&) = delete;
    PackedBuffers& operator=(const PackedBuffers&) = delete;

    bool uploaded() const noexcept { return uploaded_; }
    void upload(const PackedPlan::Impl& plan, void* stream);
    /// The parameter blocks with everything but the tensors.
    const PackedArguments& base() const noexcept { return base_; }
    const PackedKernels& kernels() const noexcept { return kernels_; }
    std::uint64_t engine() const noexcept { return engine_; }

private:
    std::shared_ptr<Memory> memory_;
    PackedKernels kernels_;
    std::uint64_t engine_;
    void* block_ = nullptr;
    PackedArguments base_;
    bool uploaded_ = false;
};

/// Checks the tensors of a call and fills them into `call`. Throws kInvalidArgument naming the tensor.
void bind(const PackedPlan::Impl& plan, const PackedTensors& tensors, Memory& memory, PackedArguments& call);

}  // namespace sapwood
