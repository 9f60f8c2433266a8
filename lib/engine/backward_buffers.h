// SPDX-License-Identifier: Apache-2.0
// Device side of a backward plan: tile lists, counters, row statistics and the sums of dQ, in one allocation.
#pragma once

#include <array>
#include <memory>

#include "engine/device_memory.h"
#include "engine/kernel.h"
#include "plan/backward_plan.h"

namespace sapwood {

/// In the order in which they run.
struct BackwardKernels {
    Kernel *bounds = nullptr, *tiles = nullptr;  // of a pack with arrays
    Kernel *prepare = nullptr, *main = nullptr, *finish = nullptr;
};
struct BackwardArguments {
    abi::ArrayBoundsParams bounds{};
    abi::BackwardTilesParams tiles{};
    abi::BackwardPrepareParams prepare{};
    abi::BackwardParams main{};
    abi::BackwardFinishParams finish{};
};

class BackwardBuffers {
public:
    BackwardBuffers(std::shared_ptr<Memory> memory, const PackedBackwardPlan::Impl& plan, const BackwardKernels& kernels,
                    std::uint64_t engine);
    ~BackwardBuffers();
    BackwardBuffers(const BackwardBuffers&) = delete;
    BackwardBuffers& operator=(const BackwardBuffers&) = delete;

    bool uploaded() const noexcept { return uploaded_; }
    void upload(const PackedBackwardPlan::Impl& plan, void* stream);
    /// The parameter blocks with everything but the tensors.
    const BackwardArguments& base() const noexcept { return base_; }
    const BackwardKernels& kernels() const noexcept { return kernels_; }
    std::uint64_t engine() const noexcept { return engine_; }

private:
    std::shared_ptr<Memory> memory_;
    BackwardKernels kernels_;
    std::uint64_t engine_;
    void* block_ = nullptr;
    BackwardArguments base_;
    bool uploaded_ = false;
};

/// Checks the tensors of a call and fills them into `call`. Throws kInvalidArgument naming the tensor.
void bind(const PackedBackwardPlan::Impl& plan, const PackedGradients& tensors, Memory& memory, BackwardArguments& call);

}  // namespace sapwood
