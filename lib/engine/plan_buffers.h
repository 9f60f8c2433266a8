// SPDX-License-Identifier: Apache-2.0
// Device side of a plan: work list, partial results, counters, in one allocation of the plan's fixed capacity.
#pragma once

#include <memory>

#include "engine/device_memory.h"
#include "engine/kernel.h"
#include "plan/decode_plan.h"
#include "tensor_map_abi.h"

namespace sapwood {

class PlanBuffers {
public:
    PlanBuffers(std::shared_ptr<Memory> memory, const DecodePlan::Impl& plan, Kernel* kernel, std::uint64_t engine);
    ~PlanBuffers();
    PlanBuffers(const PlanBuffers&) = delete;
    PlanBuffers& operator=(const PlanBuffers&) = delete;

    bool stale(const DecodePlan::Impl& plan) const noexcept {
        return revision_ != plan.revision || plan.list.changed_begin != plan.list.changed_end;
    }
    /// Copies what has changed since the last upload.
    void upload(DecodePlan::Impl& plan, void* stream);
    /// The parameter block with everything but the tensors.
    const abi::DecodeParams& base() const noexcept { return base_; }
    /// Its form for a kernel whose copies the copy engine makes: `params`, bound to tensors, and what that one is to know of K and
    /// V.
    abi::MappedDecodeParams mapped(const DecodePlan::Impl& plan, const abi::DecodeParams& params);
    Kernel* kernel() const noexcept { return kernel_; }
    /// Another kernel for a list that was planned for its tiles: the buffers' capacity does not depend on them.
    void set_kernel(Kernel* kernel) noexcept { kernel_ = kernel; }
    std::uint64_t engine() const noexcept { return engine_; }
    Memory& memory() const noexcept { return *memory_; }

private:
    std::shared_ptr<Memory> memory_;
    Kernel* kernel_;
    std::uint64_t engine_;
    void* block_ = nullptr;
    abi::DecodeParams base_{};
    abi::MappedDecodeParams mapped_{};  // the last one: encoding takes longer than a comparison
    std::uint64_t revision_ = 0;
};

}  // namespace sapwood
