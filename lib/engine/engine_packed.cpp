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
    return packed_key(Family::packed_forward, plan.problem, plan.config, plan.limits.target, {.arrays = plan.arrays.present});
}

/// The plan's kernels, ready, and its buffers where there is a device. `origin` is the last one's.
PackedKernels make_ready(PackedPlan::Impl& plan, KernelService& service, jit::Origin* origin = nullptr) {
    check_made_for(plan.limits, service);
    PackedKernels kernels;
    if (plan.arrays.present) {
        kernels.bounds = service.get(array_key(Family::array_bounds, plan.limits.target));
        kernels.tiles = service.get(array_key(Family::forward_tiles, plan.limits.target));
    }
    kernels.main = service.get(key_of(plan), origin);
    if (service.setup.memory && buffers_on<PackedBuffers>(plan, service) == nullptr)
        plan.device = std::make_shared<PackedBuffers>(service.setup.memory, plan, kernels, service.identity);
    return kernels;
}

}  // namespace

PackedPlan Engine::plan_packed(const PackedProblem& problem, const Pack& pack, const PackedConfig& config) {
    // Sizes of a pack with arrays are those of the causal mask: neither a bucket of the tuner nor a record of a trace.
    const Limits& limits = impl_->service->setup.limits;
    auto plan = pack.dfs_arrays() ? make_packed_plan(problem, pack, config, limits)
                                  : impl_->service->tuning->plan(problem, pack, config, limits);
    plan->key = key_of(*plan).to_string();
    if (pack.dfs_arrays()) {
        for (const Family family : {Family::array_bounds, Family::forward_tiles})
            plan->keys.push_back(array_key(family, plan->limits.target).to_string());
    }
    plan->keys.push_back(plan->key);
    if (!pack.dfs_arrays()) trace_plan(*impl_, *plan, pack, {.config = plan->config, .keys = plan->keys});
    return PackedPlan(std::move(plan));
}

KernelReport Engine::prepare(PackedPlan& plan) {
    const auto start = std::chrono::steady_clock::now();
    jit::Origin origin{};
    const Kernel* const kernel = make_ready(plan.impl(), *impl_->service, &origin).main;
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
    PackedArguments call;
    PackedBuffers* buffers = buffers_on<PackedBuffers>(host, service);
    if (buffers == nullptr || !buffers->uploaded()) {
        check_made_for(host.limits, service);
        check_not_capturing(service, stream, buffers != nullptr);
        bind(host, tensors, *service.setup.memory, call);  // bad tensors are refused before anything is compiled or copied
        upload(plan, stream);
        buffers = buffers_on<PackedBuffers>(host, service);
    }
    call = buffers->base();
    bind(host, tensors, *service.setup.memory, call);
    const PackedKernels& kernels = buffers->kernels();
    if (host.arrays.present) enqueue_lists(service, host, kernels, call, stream);
    enqueue(service, *kernels.main, host.grid(), call.main, stream);
    trace_launch(host);
}

std::string Engine::source(const PackedPlan& plan) const { return render(key_of(plan.impl())).source; }

std::vector<std::byte> Engine::binary(PackedPlan& plan) {
    prepare(plan);
    return impl_->service->get(key_of(plan.impl()))->artifact->payload;
}

}  // namespace sapwood
