// SPDX-License-Identifier: Apache-2.0
// What a call over a pack does, from plan to launch.
#include <chrono>

#include "base/error.h"
#include "engine/engine_impl.h"
#include "engine/packed_buffers.h"
#include "kernel/render.h"

namespace sapwood {
namespace {

KernelKey key_of(const PackedPlan::Impl& plan) {
    return packed_key(Family::packed_forward, plan.problem, plan.config, plan.limits.target);
}

PackedBuffers* buffers_of(const PackedPlan::Impl& plan, const KernelService& service) {
    auto* const buffers = static_cast<PackedBuffers*>(plan.device.get());
    return buffers != nullptr && buffers->engine() == service.identity ? buffers : nullptr;
}

void check_plan(const PackedPlan::Impl& plan, const KernelService& service) {
    const Limits& here = service.setup.limits;
    if (plan.limits.target != service.setup.target || plan.limits.sms != here.sms)
        raise(ErrorCode::kUnsupportedDevice, "the plan was made for " + plan.limits.target + " with " +
                                                 std::to_string(plan.limits.sms) + " SMs; this engine runs on " +
                                                 service.setup.target + " with " + std::to_string(here.sms) +
                                                 ". Plan with this engine");
}

/// The plan's kernel, ready, and its buffers where there is a device.
Kernel* make_ready(PackedPlan::Impl& plan, KernelService& service, jit::Origin* origin = nullptr) {
    check_plan(plan, service);
    Kernel* const kernel = service.get(key_of(plan), origin);
    if (service.setup.memory && buffers_of(plan, service) == nullptr)
        plan.device = std::make_shared<PackedBuffers>(service.setup.memory, plan, kernel, service.identity);
    return kernel;
}

}  // namespace

PackedPlan Engine::plan_packed(const PackedProblem& problem, const Pack& pack, const PackedConfig& config) {
    auto plan = make_packed_plan(problem, pack, config, impl_->service->setup.limits);
    plan->key = key_of(*plan).to_string();
    return PackedPlan(std::move(plan));
}

KernelReport Engine::prepare(PackedPlan& plan) {
    const auto start = std::chrono::steady_clock::now();
    jit::Origin origin{};
    const Kernel* const kernel = make_ready(plan.impl(), *impl_->service, &origin);
    KernelReport report = report_of(*kernel, origin);
    report.prepare_ms = std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start).count();
    return report;
}

void Engine::upload(PackedPlan& plan, void* stream) {
    impl_->check_runs();
    make_ready(plan.impl(), *impl_->service);
    buffers_of(plan.impl(), *impl_->service)->upload(plan.impl(), stream);
}

void Engine::launch(PackedPlan& plan, const PackedTensors& tensors, void* stream) {
    PackedPlan::Impl& host = plan.impl();
    KernelService& service = *impl_->service;
    impl_->check_runs();
    if (host.list.blocks.empty()) return;  // no rows: nothing to write
    abi::PackedForwardParams params{};
    PackedBuffers* buffers = buffers_of(host, service);
    if (buffers == nullptr || !buffers->uploaded()) {
        check_plan(host, service);
        if (service.setup.memory->capturing(stream))
            raise(ErrorCode::kNotPrepared, std::string("the stream is capturing and the plan is not ") +
                                               (buffers != nullptr ? "uploaded" : "prepared") +
                                               "; call Engine::prepare and Engine::upload before the capture");
        bind(host, tensors, *service.setup.memory, params);  // bad tensors are refused before anything is compiled or copied
        upload(plan, stream);
        buffers = buffers_of(host, service);
    }
    params = buffers->base();
    bind(host, tensors, *service.setup.memory, params);
    Kernel& kernel = *buffers->kernel();
    const jit::LaunchShape shape = {.grid = static_cast<std::uint32_t>(host.grid()),
                                    .block = threads_of(kernel.key),
                                    .shared_bytes = shared_bytes_of(kernel.key),
                                    .overlap = service.options.overlap_launches};
    kernel.loaded->launch(shape, &params, sizeof(params), stream);
    service.counters.launches.fetch_add(1, std::memory_order_relaxed);
    kernel.calls.fetch_add(1, std::memory_order_relaxed);
}

std::string Engine::source(const PackedPlan& plan) const { return render(key_of(plan.impl())).source; }

std::vector<std::byte> Engine::binary(PackedPlan& plan) {
    prepare(plan);
    return impl_->service->get(key_of(plan.impl()))->artifact->payload;
}

}  // namespace sapwood
