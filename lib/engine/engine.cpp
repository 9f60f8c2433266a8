// SPDX-License-Identifier: Apache-2.0
// What a call does, from plan to launch. What kernels there are and where they come from: kernel_service.cpp.
#include "sapwood/engine.h"

#include <chrono>
#include <set>

#include "base/env.h"
#include "base/error.h"
#include "base/log.h"
#include "engine/arguments.h"
#include "engine/calls.h"
#include "engine/engine_impl.h"
#include "engine/plan_buffers.h"
#include "engine/plan_state.h"
#include "kernel/decode_source.h"
#include "kernel/key_text.h"
#include "kernel/render.h"
#include "plan/static_plan.h"

namespace sapwood {

KernelReport report_of(const Kernel& kernel, jit::Origin origin) {
    const jit::Artifact& artifact = *kernel.artifact;
    KernelReport report;
    report.key = kernel.key.to_string();
    report.target = artifact.target;
    report.compiler = artifact.compiler;
    report.origin = jit::origin_name(origin);
    report.compile_ms = artifact.compile_ms;
    report.registers = artifact.resources.registers;
    report.spill_bytes = artifact.resources.spill_bytes;
    report.shared_bytes = static_cast<int>(shared_bytes_of(kernel.key));
    report.threads = static_cast<int>(threads_of(kernel.key));
    report.blocks_per_sm = kernel.blocks_per_sm;
    report.log = artifact.log;
    return report;
}

namespace {

PlanBuffers& buffers_of(DecodePlan::Impl& plan) { return *static_cast<PlanBuffers*>(plan.device.get()); }

double ms_since(std::chrono::steady_clock::time_point start) {
    return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start).count();
}

}  // namespace

Engine::Impl::Impl(EngineOptions options) : service(make_service(std::move(options))) {
    std::filesystem::path file = service->options.trace;
    if (file.empty() && !service->options.compile_only) file = env::get("SAPWOOD_TRACE").value_or("");  // of runs, not of tools
    if (!file.empty()) trace = TraceRecorder::of(file);
}

Engine::Impl::~Impl() {
    if (trace == nullptr) return;
    if (const std::string fault = trace->flush(); !fault.empty()) log::warning_once("trace", "the trace is lost: " + fault);
}

KernelKey Engine::Impl::key_of(const DecodePlan::Impl& plan) const {
    return decode_key(plan.problem, plan.config, service->setup.target);
}

bool Engine::Impl::ready(const DecodePlan::Impl& plan) const {
    return plan.device != nullptr && static_cast<const PlanBuffers*>(plan.device.get())->engine() == service->identity;
}

void Engine::Impl::check_runs() const {
    if (!service->setup.memory) {
        raise(ErrorCode::kUnsupportedDevice,
              "this engine compiles for " + service->setup.target +
                  " without such a device; kernels can be prepared and inspected here, not launched");
    }
}

/// The engine's part in a new plan: who serves it, and whether it is traced.
void Engine::Impl::adopt(DecodePlan::Impl& plan, const Forest& forest, const DecodeLimits& asked) {
    const KernelKey key = key_of(plan);
    plan.key = key.to_string();
    const bool missing = service->setup.memory != nullptr && service->find(key) == nullptr;
    if (!missing && trace == nullptr) return;
    auto state = std::make_shared<PlanState>(service, asked);
    if (missing) {
        Kernel* nearest = service->stands_in() ? service->nearest(key) : nullptr;
        if (nearest != nullptr) {
            miss(key, /*served=*/true);
            state->stand_in(plan, *nearest, key, forest);
        } else {
            if (service->in_background() && !service->sealed()) service->request(key);  // the sooner it begins, the shorter a wait
            state->keep_forest(forest);
        }
    }
    if (trace != nullptr) state->trace(trace, plan, forest);
    plan.hook = std::move(state);
}

/// A call wants a kernel that is not ready, and is served by another one or not at all.
void Engine::Impl::miss(const KernelKey& key, bool served) {
    if (service->sealed_as(SealPolicy::nearest)) {
        if (!served) service->admit_miss(key);  // throws
        ++service->counters.misses_after_seal;
        return;
    }
    service->admit_miss(key);
    service->request(key);
}

/// The kernel for a call of an unprepared plan. With a policy that does not wait the plan may have other tiles afterwards.
Kernel* Engine::Impl::kernel_for_call(DecodePlan::Impl& plan) {
    const KernelKey key = key_of(plan);
    if (Kernel* present = service->find(key)) return present;
    if (!service->stands_in()) return service->get(key);
    PlanState* state = state_of(plan);
    if (Kernel* nearest = service->nearest(key);
        nearest != nullptr && state != nullptr && state->stand_in_now(plan, *nearest, key)) {
        miss(key, /*served=*/true);
        return nearest;
    }
    miss(key, /*served=*/false);
    const std::string text = key.to_string();
    if (const std::string fault = service->failure(key); !fault.empty())
        raise(ErrorCode::kCompileFailed, "kernel " + text + " was tried in the background and failed; prepare() tries again",
              fault);
    if (service->options.compile == CompilePolicy::background_or_error)
        raise(ErrorCode::kNotPrepared, "kernel " + text +
                                           " is not ready, a thread compiles it, and no kernel of the same problem is "
                                           "ready to stand in; call again later, or prepare_keys({\"" +
                                           text + "\"}) beforehand");
    log::warning_once("waits:" + text, "a call waits for kernel " + text +
                                           " to be compiled: no kernel of the same problem is ready to "
                                           "stand in. prepare_keys({\"" +
                                           text + "\"}) beforehand");
    return service->get(key, nullptr, /*admitted=*/true);
}

void Engine::Impl::make_buffers(DecodePlan::Impl& plan, Kernel* kernel) {
    if (!service->setup.memory || ready(plan)) return;
    plan.device = std::make_shared<PlanBuffers>(service->setup.memory, plan, kernel, service->identity);
    if (PlanState* state = state_of(plan)) state->drop_forest();
}

void Engine::Impl::prepare_for_call(DecodePlan::Impl& plan) {
    check_made_for(plan.limits, *service);
    if (!ready(plan)) make_buffers(plan, kernel_for_call(plan));
}

Engine::Engine(EngineOptions options) : impl_(std::make_unique<Impl>(std::move(options))) {}
Engine::~Engine() = default;

DecodePlan Engine::plan_decode(const DecodeProblem& problem, const Forest& forest, const DecodeConfig& config,
                               const DecodeLimits& limits) {
    auto plan = impl_->service->tuning->plan(problem, forest, config, limits, impl_->service->setup.limits);
    impl_->adopt(*plan, forest, limits);
    return DecodePlan(std::move(plan));
}

DecodePlan Engine::plan_static_tree(const DecodeProblem& problem, std::span<const StaticTree> trees,
                                    std::span<const StaticTreeSequence> sequences, const DecodeConfig& config) {
    auto plan = make_static_plan(problem, trees, sequences, config, impl_->service->setup.limits);
    plan->key = impl_->key_of(*plan).to_string();
    return DecodePlan(std::move(plan));
}

KernelReport Engine::prepare(DecodePlan& plan) {
    const auto start = std::chrono::steady_clock::now();
    DecodePlan::Impl& host = plan.impl();
    check_made_for(host.limits, *impl_->service);
    jit::Origin origin{};
    Kernel* kernel = impl_->service->get(impl_->key_of(host), &origin);
    impl_->make_buffers(host, kernel);
    KernelReport report = report_of(*kernel, origin);
    if (const PlanState* state = state_of(host); state != nullptr && state->standing_in())
        report.stands_in_for = state->wanted().to_string();
    report.prepare_ms = ms_since(start);
    return report;
}

std::vector<KernelReport> Engine::prepare(std::span<DecodePlan> plans) {
    std::vector<std::string> keys;
    for (const DecodePlan& plan : plans) {
        check_made_for(plan.impl().limits, *impl_->service);
        keys.push_back(impl_->key_of(plan.impl()).to_string());
    }
    std::vector<KernelReport> reports = prepare_keys(keys);
    for (std::size_t i = 0; i < plans.size(); ++i) {
        if (reports[i].error.empty()) reports[i].stands_in_for = prepare(plans[i]).stands_in_for;
    }
    return reports;
}

std::vector<KernelReport> Engine::prepare_keys(std::span<const std::string> keys) {
    KernelService& service = *impl_->service;
    std::vector<KernelReport> reports(keys.size());
    std::vector<KernelKey> parsed;
    std::vector<std::size_t> order, repeated;  // repeated ones last, so that no thread waits for one that another compiles
    std::set<std::string_view> seen;
    for (std::size_t i = 0; i < keys.size(); ++i) (seen.insert(keys[i]).second ? order : repeated).push_back(i);
    order.insert(order.end(), repeated.begin(), repeated.end());
    for (const std::string& text : keys) {
        parsed.push_back(parse_key(text));
        if (parsed.back().target.data() != service.setup.target)
            raise(ErrorCode::kInvalidArgument,
                  "kernel " + text + " is for another target than this engine's, " + service.setup.target);
    }
    parallel_for(keys.size(), service.pool().limit(), [&](std::size_t n) {
        const std::size_t i = order[n];
        const auto start = std::chrono::steady_clock::now();
        jit::Origin origin{};
        std::string fault;
        if (const Kernel* kernel = service.try_get(parsed[i], &origin, &fault)) reports[i] = report_of(*kernel, origin);
        reports[i].key = keys[i];
        reports[i].error = fault;
        reports[i].prepare_ms = ms_since(start);
    });
    return reports;
}

void Engine::upload(DecodePlan& plan, void* stream) {
    DecodePlan::Impl& host = plan.impl();
    impl_->check_runs();
    impl_->prepare_for_call(host);
    buffers_of(host).upload(host, stream);
}

void Engine::launch(DecodePlan& plan, const DecodeTensors& tensors, void* stream) {
    DecodePlan::Impl& host = plan.impl();
    KernelService& service = *impl_->service;
    const bool ready = impl_->ready(host);
    if (!ready || buffers_of(host).stale(host)) {
        impl_->check_runs();
        check_made_for(host.limits, service);
        check_not_capturing(service, stream, ready);
        abi::DecodeParams checked{};
        bind(host, tensors, checked);  // bad tensors are refused before anything is compiled or copied
        upload(plan, stream);
    }
    PlanBuffers& buffers = buffers_of(host);
    abi::DecodeParams params = buffers.base();
    bind(host, tensors, params);
    Kernel& kernel = *buffers.kernel();
    PlanState* const state = state_of(host);
    const bool stands_in = state != nullptr && state->standing_in();
    if (stands_in && !state->fixed() && service.setup.memory->capturing(stream)) state->fix();
    if (takes_tensor_maps(kernel.key)) {
        enqueue(service, kernel, host.grid(), buffers.mapped(host, params), stream);
    } else {
        enqueue(service, kernel, host.grid(), params, stream);
    }
    if (state != nullptr) state->count_launch();
    if (stands_in) {
        service.counters.stand_in_launches.fetch_add(1, std::memory_order_relaxed);
        kernel.stand_in_calls.fetch_add(1, std::memory_order_relaxed);
    }
}

void Engine::seal(SealPolicy policy) { impl_->service->seal(policy); }
void Engine::finish_compiles() { impl_->service->finish_requests(); }
bool Engine::add_bundle(const std::filesystem::path& path, const std::string& expected_digest) {
    return impl_->service->add_bundle(path, expected_digest);
}

void Engine::flush_trace() {
    if (impl_->trace == nullptr) return;
    if (const std::string fault = impl_->trace->flush(); !fault.empty()) raise(ErrorCode::kIo, "the trace: " + fault);
}

const std::string& Engine::target() const noexcept { return impl_->service->setup.target; }
bool Engine::has_device() const noexcept { return impl_->service->setup.memory != nullptr; }
std::string Engine::device_name() const { return impl_->service->setup.device_name; }

std::string Engine::describe_cache() const {
    const jit::DiskCache& cache = impl_->service->cache;
    std::string bundles;
    for (const auto& bundle : cache.bundles()) bundles += (bundles.empty() ? "; bundles " : ", ") + bundle->path().string();
    if (!cache.root().empty()) return cache.root().string() + bundles;
    const std::string reason = cache.disabled_reason();
    return (reason.empty() ? "memory only" : "memory only: " + reason) + bundles;
}

EngineStats Engine::stats() const { return impl_->service->stats(); }
std::vector<KernelUse> Engine::kernels() const { return impl_->service->uses(); }
std::string Engine::describe_tuning() const { return impl_->service->tuning->describe(); }
const TargetSetup& setup_of(Engine& engine) { return engine.impl().service->setup; }

std::string Engine::source(const DecodePlan& plan) const { return render(impl_->key_of(plan.impl())).source; }

std::vector<std::byte> Engine::binary(DecodePlan& plan) {
    prepare(plan);
    return impl_->service->get(impl_->key_of(plan.impl()))->artifact->payload;
}

}  // namespace sapwood
