// SPDX-License-Identifier: Apache-2.0
// What a backward call over a pack does, from plan to launch.
#include <algorithm>
#include <chrono>

#include "base/error.h"
#include "engine/backward_buffers.h"
#include "engine/calls.h"
#include "engine/engine_impl.h"
#include "engine/pack_tracing.h"

namespace sapwood {
namespace {

constexpr int kRowWarps = 8;   // a block of the kernels that go over all rows
constexpr int kRowBlocks = 4;  // of these an SM

/// What a kernel does not depend on is left out of its key.
KernelKey key_of(const PackedBackwardPlan::Impl& plan, Family family) {
    PackedProblem problem = plan.problem;
    PackedConfig config = plan.config;
    if (family != Family::packed_backward) {
        problem.scale = 1, problem.softcap = 0;
        const int keys = family == Family::backward_finish ? plan.config.block_kv : 0;
        config = {.mainloop = Mainloop::mma, .warps = kRowWarps, .block_kv = keys, .blocks = 1};
    }
    const bool main = family == Family::packed_backward;
    return packed_key(family, problem, config, plan.limits.target,
                      {.arrays = main && plan.arrays.present, .fixed_order = main && plan.options.deterministic});
}

/// The plan's kernels, ready, and its buffers where there is a device.
BackwardKernels make_ready(PackedBackwardPlan::Impl& plan, KernelService& service) {
    check_made_for(plan.limits, service);
    const auto of_lists = [&](Family family) {
        return plan.arrays.present ? service.get(array_key(family, plan.limits.target)) : nullptr;
    };
    const BackwardKernels kernels = {.bounds = of_lists(Family::array_bounds),
                                     .tiles = of_lists(Family::backward_tiles),
                                     .prepare = service.get(key_of(plan, Family::backward_prepare)),
                                     .main = service.get(key_of(plan, Family::packed_backward)),
                                     .finish = service.get(key_of(plan, Family::backward_finish))};
    if (service.setup.memory && buffers_on<BackwardBuffers>(plan, service) == nullptr)
        plan.device = std::make_shared<BackwardBuffers>(service.setup.memory, plan, kernels, service.identity);
    return kernels;
}

}  // namespace

PackedBackwardPlan Engine::plan_packed_backward(const PackedProblem& problem, const Pack& pack,
                                                const PackedBackwardOptions& options) {
    const Limits& limits = impl_->service->setup.limits;
    auto plan = pack.dfs_arrays() ? make_backward_plan(problem, pack, options, limits)  // as in plan_packed
                                  : impl_->service->tuning->plan_backward(problem, pack, options, limits);
    if (pack.dfs_arrays()) {
        for (const Family family : {Family::array_bounds, Family::backward_tiles})
            plan->keys.push_back(array_key(family, plan->limits.target).to_string());
    }
    for (const Family family : {Family::backward_prepare, Family::packed_backward, Family::backward_finish})
        plan->keys.push_back(key_of(*plan, family).to_string());
    if (!pack.dfs_arrays())
        trace_plan(*impl_, *plan, pack,
                   {.backward = true, .deterministic = options.deterministic, .config = plan->config, .keys = plan->keys});
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
    buffers_on<BackwardBuffers>(plan.impl(), *impl_->service)->upload(plan.impl(), stream);
}

void Engine::launch(PackedBackwardPlan& plan, const PackedGradients& tensors, void* stream) {
    PackedBackwardPlan::Impl& host = plan.impl();
    KernelService& service = *impl_->service;
    impl_->check_runs();
    BackwardArguments call;
    BackwardBuffers* buffers = buffers_on<BackwardBuffers>(host, service);
    if (buffers == nullptr || !buffers->uploaded()) {
        check_made_for(host.limits, service);
        check_not_capturing(service, stream, buffers != nullptr);
        bind(host, tensors, *service.setup.memory, call);  // bad tensors are refused before anything is compiled or copied
        upload(plan, stream);
        buffers = buffers_on<BackwardBuffers>(host, service);
    }
    call = buffers->base();
    bind(host, tensors, *service.setup.memory, call);
    const std::int64_t rows = host.row_tiles() * abi::kRowTile * host.problem.q_heads;
    const std::int64_t row_grid = std::min<std::int64_t>((rows + kRowWarps - 1) / kRowWarps, host.limits.sms * kRowBlocks);
    const BackwardKernels& kernels = buffers->kernels();
    if (host.arrays.present) enqueue_lists(service, host, kernels, call, stream);
    if (row_grid > 0) enqueue(service, *kernels.prepare, row_grid, call.prepare, stream);
    if (host.info.grid > 0) enqueue(service, *kernels.main, host.info.grid, call.main, stream);
    if (row_grid > 0) enqueue(service, *kernels.finish, row_grid, call.finish, stream);
    trace_launch(host);
}

}  // namespace sapwood
