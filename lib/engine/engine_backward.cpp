// SPDX-License-Identifier: Apache-2.0
// What a backward call over a pack does, from plan to launch.
#include <algorithm>
#include <chrono>

#include "attention/backward_layout.h"
#include "base/error.h"
#include "engine/backward_buffers.h"
#include "engine/engine_impl.h"
#include "kernel/render.h"

namespace sapwood {
namespace {

constexpr int kRowWarps = 8;   // a block of the kernels that go over all rows
constexpr int kRowBlocks = 4;  // of these an SM

/// What a kernel does not depend on is left out of its key.
KernelKey key_of(const PackedBackwardPlan::Impl& plan, Family family) {
    PackedProblem problem = plan.problem;
    PackedConfig config = {.mainloop = Mainloop::wgmma,
                           .warps = 8,
                           .producers = 4,
                           .block_kv = static_cast<int>(abi::kBackwardKeys),
                           .stages = static_cast<int>(abi::kBackwardStages),
                           .blocks = 1};
    if (family != Family::packed_backward) {
        problem.scale = 1, problem.softcap = 0;
        config = {.mainloop = Mainloop::mma, .warps = kRowWarps, .blocks = 1};
    }
    return packed_key(family, problem, config, plan.limits.target);
}

BackwardBuffers* buffers_of(const PackedBackwardPlan::Impl& plan, const KernelService& service) {
    auto* const buffers = static_cast<BackwardBuffers*>(plan.device.get());
    return buffers != nullptr && buffers->engine() == service.identity ? buffers : nullptr;
}

void check_plan(const PackedBackwardPlan::Impl& plan, const KernelService& service) {
    const Limits& here = service.setup.limits;
    if (plan.limits.target != service.setup.target || plan.limits.sms != here.sms)
        raise(ErrorCode::kUnsupportedDevice, "the plan was made for " + plan.limits.target + " with " +
                                                 std::to_string(plan.limits.sms) + " SMs; this engine runs on " +
                                                 service.setup.target + " with " + std::to_string(here.sms) +
                                                 ". Plan with this engine");
}

/// The plan's kernels, ready, and its buffers where there is a device.
BackwardKernels make_ready(PackedBackwardPlan::Impl& plan, KernelService& service) {
    check_plan(plan, service);
    const BackwardKernels kernels = {.prepare = service.get(key_of(plan, Family::backward_prepare)),
                                     .main = service.get(key_of(plan, Family::packed_backward)),
                                     .finish = service.get(key_of(plan, Family::backward_finish))};
    if (service.setup.memory && buffers_of(plan, service) == nullptr)
        plan.device = std::make_shared<BackwardBuffers>(service.setup.memory, plan, kernels, service.identity);
    return kernels;
}

template <class Params>
void enqueue(KernelService& service, Kernel& kernel, std::int64_t grid, const Params& params, void* stream) {
    if (grid == 0) return;
    const jit::LaunchShape shape = {.grid = static_cast<std::uint32_t>(grid),
                                    .block = threads_of(kernel.key),
                                    .shared_bytes = shared_bytes_of(kernel.key),
                                    .overlap = service.options.overlap_launches};
    kernel.loaded->launch(shape, &params, sizeof(params), stream);
    service.counters.launches.fetch_add(1, std::memory_order_relaxed);
    kernel.calls.fetch_add(1, std::memory_order_relaxed);
}

}  // namespace

PackedBackwardPlan Engine::plan_packed_backward(const PackedProblem& problem, const Pack& pack) {
    auto plan = make_backward_plan(problem, pack, impl_->service->setup.limits);
    for (const Family family : {Family::backward_prepare, Family::packed_backward, Family::backward_finish})
        plan->keys.push_back(key_of(*plan, family).to_string());
    return PackedBackwardPlan(std::move(plan));
}

std::vector<KernelReport> Engine::prepare(PackedBackwardPlan& plan) {
    std::vector<KernelReport> reports = prepare_keys(plan.impl().keys);
    for (const KernelReport& report : reports) {
        if (!report.error.empty()) raise(ErrorCode::kCompileFailed, "kernel " + report.key + " is not ready", report.error);
    }
    make_ready(plan.impl(), *impl_->service);
    return reports;
}

void Engine::upload(PackedBackwardPlan& plan, void* stream) {
    impl_->check_runs();
    make_ready(plan.impl(), *impl_->service);
    buffers_of(plan.impl(), *impl_->service)->upload(plan.impl(), stream);
}

void Engine::launch(PackedBackwardPlan& plan, const PackedGradients& tensors, void* stream) {
    PackedBackwardPlan::Impl& host = plan.impl();
    KernelService& service = *impl_->service;
    impl_->check_runs();
    BackwardArguments call;
    BackwardBuffers* buffers = buffers_of(host, service);
    if (buffers == nullptr || !buffers->uploaded()) {
        check_plan(host, service);
        if (service.setup.memory->capturing(stream))
            raise(ErrorCode::kNotPrepared, std::string("the stream is capturing and the plan is not ") +
                                               (buffers != nullptr ? "uploaded" : "prepared") +
                                               "; call Engine::prepare and Engine::upload before the capture");
        bind(host, tensors, *service.setup.memory, call);  // bad tensors are refused before anything is compiled or copied
        upload(plan, stream);
        buffers = buffers_of(host, service);
    }
    call = buffers->base();
    bind(host, tensors, *service.setup.memory, call);
    const std::int64_t rows = host.row_tiles() * abi::kRowTile * host.problem.q_heads;
    const std::int64_t row_grid = std::min<std::int64_t>((rows + kRowWarps - 1) / kRowWarps, host.limits.sms * kRowBlocks);
    enqueue(service, *buffers->kernels().prepare, row_grid, call.prepare, stream);
    enqueue(service, *buffers->kernels().main, host.info.grid, call.main, stream);
    enqueue(service, *buffers->kernels().finish, row_grid, call.finish, stream);
}

}  // namespace sapwood
