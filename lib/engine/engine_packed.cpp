// SPDX-License-Identifier: Apache-2.0
// What a call over a pack does, from plan to launch.
#include <chrono>

#include "base/error.h"
#include "engine/calls.h"
#include "engine/engine_impl.h"
#include "engine/pack_tracing.h"
#include "engine/packed_buffers.h"
#include "kernel/render.h"

namespace sapwood {
namespace {

KernelKey key_of(const PackedPlan::Impl& plan) {
    return packed_key(Family::packed_forward, plan.problem, plan.config, plan.limits.target);
}

/// The plan's kernel, ready, and its buffers where there is a device.
Kernel* make_ready(PackedPlan::Impl& plan, KernelService& service, jit::Origin* origin = nullptr) {
    check_made_for(plan.limits, service);
    Kernel* const kernel = service.get(key_of(plan), origin);
    if (service.setup.memory && buffers_on<PackedBuffers>(plan, service) == nullptr)
        plan.device = std::make_shared<PackedBuffers>(service.setup.memory, plan, kernel, service.identity);
    return kernel;
}

}  // namespace

PackedPlan Engine::plan_packed(const PackedProblem& problem, const Pack& pack, const PackedConfig& config) {
    auto plan = impl_->service->tuning->plan(problem, pack, config, impl_->service->setup.limits);
    plan->key = key_of(*plan).to_string();
    trace_plan(*impl_, *plan, pack, {.config = plan->config, .keys = {plan->key}});
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
    buffers_on<PackedBuffers>(plan.impl(), *impl_->service)->upload(plan.impl(), stream);
}

void Engine::launch(PackedPlan& plan, const PackedTensors& tensors, void* stream) {
    PackedPlan::Impl& host = plan.impl();
    KernelService& service = *impl_->service;
    impl_->check_runs();
    if (host.list.blocks.empty()) return;  // no rows: nothing to write
    abi::PackedForwardParams params{};
    PackedBuffers* buffers = buffers_on<PackedBuffers>(host, service);
    if (buffers == nullptr || !buffers->uploaded()) {
        check_made_for(host.limits, service);
        check_not_capturing(service, stream, buffers != nullptr);
        bind(host, tensors, *service.setup.memory, params);  // bad tensors are refused before anything is compiled or copied
        upload(plan, stream);
        buffers = buffers_on<PackedBuffers>(host, service);
    }
    params = buffers->base();
    bind(host, tensors, *service.setup.memory, params);
    enqueue(service, *buffers->kernel(), host.grid(), params, stream);
    trace_launch(host);
}

std::string Engine::source(const PackedPlan& plan) const { return render(key_of(plan.impl())).source; }

std::vector<std::byte> Engine::binary(PackedPlan& plan) {
    prepare(plan);
    return impl_->service->get(key_of(plan.impl()))->artifact->payload;
}

}  // namespace sapwood
