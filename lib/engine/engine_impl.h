// SPDX-License-Identifier: Apache-2.0
// Private to engine: what is behind Engine's pointer.
#pragma once

#include <memory>

#include "engine/kernel_service.h"
#include "engine/trace_recorder.h"
#include "plan/decode_plan.h"
#include "sapwood/engine.h"

namespace sapwood {

struct Engine::Impl {
    explicit Impl(EngineOptions options);
    ~Impl();

    std::shared_ptr<KernelService> service;
    std::shared_ptr<TraceRecorder> trace;  // null: not traced

    KernelKey key_of(const DecodePlan::Impl& plan) const;
    bool ready(const DecodePlan::Impl& plan) const;
    void check_runs() const;
    void adopt(DecodePlan::Impl& plan, const Forest& forest, const DecodeLimits& asked);
    void prepare_for_call(DecodePlan::Impl& plan);
    void make_buffers(DecodePlan::Impl& plan, Kernel* kernel);

private:
    void miss(const KernelKey& key, bool served);
    Kernel* kernel_for_call(DecodePlan::Impl& plan);
};

/// What callers are told of a kernel that is ready.
KernelReport report_of(const Kernel& kernel, jit::Origin origin);

}  // namespace sapwood
