// SPDX-License-Identifier: Apache-2.0
#include "sapwood/engine.h"

#include <atomic>
#include <chrono>

#include "base/env.h"
#include "base/error.h"
#include "base/log.h"
#include "base/once_cache.h"
#include "engine/arguments.h"
#include "engine/kernel_table.h"
#include "engine/plan_buffers.h"
#include "engine/target.h"
#include "engine/tuning.h"
#include "host/host.h"
#include "jit/disk_cache.h"
#include "kernel/render.h"

namespace sapwood {

namespace {

/// Tells engines apart for good: the next one may lie where the last one lay.
std::uint64_t next_identity() {
    static std::atomic<std::uint64_t> next{1};
    return next.fetch_add(1, std::memory_order_relaxed);
}

}  // namespace

struct Engine::Impl {
    const std::uint64_t identity = next_identity();
    EngineOptions options;
    TargetSetup setup;
    jit::DiskCache cache;
    Tuning tuning;
    OnceCache<KernelKey, Kernel> building;
    KernelTable table;
    std::atomic<bool> sealed{false};
    std::atomic<std::uint64_t> launches{0}, compiles{0}, disk_hits{0}, memory_hits{0}, misses_after_seal{0};
    std::atomic<std::uint64_t> compile_us{0};

    explicit Impl(EngineOptions given)
        : options(std::move(given)),
          setup(open_target(options)),
          cache(options.disk_cache && env::get("SAPWOOD_DISK_CACHE").value_or("1") != "0"
                    ? std::optional<std::filesystem::path>(options.cache_dir)
                    : std::nullopt),
          tuning(options, setup, cache.root()) {}

    std::shared_ptr<const jit::Artifact> artifact(const KernelKey& key, jit::Origin* origin) {
        auto result = cache.get_or_compile(render(key), *setup.compiler, origin);
        switch (*origin) {
            case jit::Origin::compiled:
                ++compiles;
                compile_us += static_cast<std::uint64_t>(result->compile_ms * 1000);
                break;
            case jit::Origin::disk:
                ++disk_hits;
                break;
            case jit::Origin::memory:
                ++memory_hits;
                break;
        }
        return result;
    }

    Kernel* build(const KernelKey& key, jit::Origin* origin) {
        *origin = jit::Origin::memory;
        const auto kernel = building.get_or_create(key, [&] {
            if (sealed) {
                ++misses_after_seal;
                raise(ErrorCode::kNotPrepared, "the engine is sealed and kernel " + key.to_string() +
                                                   " was not prepared; prepare a plan that needs it before seal()");
            }
            auto made = std::make_shared<Kernel>();
            made->key = key;
            made->artifact = artifact(key, origin);
            if (setup.is_host) {
                made->loaded =
                    host::load(*made->artifact, {.schedule_seed = options.host_schedule_seed, .os_threads = options.host_threads});
            } else if (setup.device) {
                made->loaded = setup.device->load(*made->artifact, shared_bytes_of(key));
                made->blocks_per_sm = setup.device->occupancy(*made->loaded, threads_of(key), shared_bytes_of(key));
                if (made->blocks_per_sm < key.blocks) {
                    log::warning_once(key.to_string(), "kernel " + key.to_string() + " reaches " +
                                                           std::to_string(made->blocks_per_sm) + " blocks an SM where " +
                                                           std::to_string(key.blocks) + " were planned");
                }
            }
            log::info("kernel " + key.to_string() + ": " + jit::origin_name(*origin) + ", " +
                      std::to_string(made->artifact->resources.registers) + " registers, " +
                      std::to_string(made->artifact->resources.spill_bytes) + " spill bytes");
            return made;
        });
        return table.publish(kernel);
    }

    Kernel* kernel(const KernelKey& key, jit::Origin* origin) {
        *origin = jit::Origin::memory;
        Kernel* present = table.find(key);
        return present != nullptr ? present : build(key, origin);
    }

    void check_plan(const DecodePlan::Impl& plan) const {
        if (plan.limits.target != setup.target || plan.limits.sms != setup.limits.sms) {
            raise(ErrorCode::kUnsupportedDevice, "the plan was made for " + plan.limits.target + " with " +
                                                     std::to_string(plan.limits.sms) + " SMs; this engine runs on " + setup.target +
                                                     " with " + std::to_string(setup.limits.sms) + ". Plan with this engine");
        }
    }
    void check_runs() const {
        if (!setup.memory) {
            raise(ErrorCode::kUnsupportedDevice,
                  "this engine compiles for " + setup.target +
                      " without such a device; kernels can be prepared and inspected here, not launched");
        }
    }

    PlanBuffers& buffers(DecodePlan::Impl& plan) const { return *static_cast<PlanBuffers*>(plan.device.get()); }
    bool ready(const DecodePlan::Impl& plan) const {
        return plan.device != nullptr && static_cast<const PlanBuffers*>(plan.device.get())->engine() == identity;
    }
};

Engine::Engine(EngineOptions options) : impl_(std::make_unique<Impl>(std::move(options))) {}
Engine::~Engine() = default;

DecodePlan Engine::plan_decode(const DecodeProblem& problem, const Forest& forest, const DecodeConfig& config,
                               const DecodeLimits& limits) {
    auto plan = impl_->tuning.plan(problem, forest, config, limits, impl_->setup.limits);
    plan->key = decode_key(plan->problem, plan->config, impl_->setup.target).to_string();
    return DecodePlan(std::move(plan));
}

KernelReport Engine::prepare(DecodePlan& plan) {
    const auto start = std::chrono::steady_clock::now();
    DecodePlan::Impl& host = plan.impl();
    impl_->check_plan(host);
    const KernelKey key = decode_key(host.problem, host.config, impl_->setup.target);
    jit::Origin origin = jit::Origin::memory;
    Kernel* kernel = impl_->kernel(key, &origin);
    if (impl_->setup.memory && !impl_->ready(host)) {
        host.device = std::make_shared<PlanBuffers>(impl_->setup.memory, host, kernel, impl_->identity);
    }
    const jit::Artifact& artifact = *kernel->artifact;
    KernelReport report;
    report.key = key.to_string();
    report.target = artifact.target;
    report.compiler = artifact.compiler;
    report.origin = jit::origin_name(origin);
    report.compile_ms = artifact.compile_ms;
    report.registers = artifact.resources.registers;
    report.spill_bytes = artifact.resources.spill_bytes;
    report.shared_bytes = static_cast<int>(shared_bytes_of(key));
    report.threads = static_cast<int>(threads_of(key));
    report.blocks_per_sm = kernel->blocks_per_sm;
    report.log = artifact.log;
    report.prepare_ms = std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start).count();
    return report;
}

void Engine::upload(DecodePlan& plan, void* stream) {
    DecodePlan::Impl& host = plan.impl();
    impl_->check_runs();
    if (!impl_->ready(host)) prepare(plan);
    impl_->buffers(host).upload(host, stream);
}

void Engine::launch(DecodePlan& plan, const DecodeTensors& tensors, void* stream) {
    DecodePlan::Impl& host = plan.impl();
    const bool ready = impl_->ready(host);
    if (!ready || impl_->buffers(host).stale(host)) {
        impl_->check_runs();
        impl_->check_plan(host);
        if (impl_->setup.memory->capturing(stream)) {
            raise(ErrorCode::kNotPrepared, std::string("the stream is capturing and the plan is not ") +
                                               (ready ? "uploaded" : "prepared") +
                                               "; call Engine::prepare and Engine::upload before the capture");
        }
        abi::DecodeParams checked{};
        bind(host.problem, tensors, checked);  // bad tensors are refused before anything is compiled or copied
        upload(plan, stream);
    }
    PlanBuffers& buffers = impl_->buffers(host);
    abi::DecodeParams params = buffers.base();
    bind(host.problem, tensors, params);
    const jit::LaunchShape shape = {.grid = static_cast<std::uint32_t>(host.grid()),
                                    .block = threads_of(buffers.kernel()->key),
                                    .shared_bytes = shared_bytes_of(buffers.kernel()->key),
                                    .overlap = impl_->options.overlap_launches};
    buffers.kernel()->loaded->launch(shape, &params, sizeof(params), stream);
    impl_->launches.fetch_add(1, std::memory_order_relaxed);
}

void Engine::seal() { impl_->sealed = true; }

const std::string& Engine::target() const noexcept { return impl_->setup.target; }
bool Engine::has_device() const noexcept { return impl_->setup.memory != nullptr; }
std::string Engine::device_name() const { return impl_->setup.device_name; }

std::string Engine::describe_cache() const {
    if (impl_->cache.root().empty()) {
        const std::string reason = impl_->cache.disabled_reason();
        return reason.empty() ? "memory only" : "memory only: " + reason;
    }
    return impl_->cache.root().string();
}

EngineStats Engine::stats() const {
    EngineStats stats = {.launches = impl_->launches,
                         .compiles = impl_->compiles,
                         .disk_hits = impl_->disk_hits,
                         .memory_hits = impl_->memory_hits,
                         .misses_after_seal = impl_->misses_after_seal,
                         .compile_ms = static_cast<double>(impl_->compile_us) / 1000.0};
    impl_->tuning.count_into(stats);
    return stats;
}

std::string Engine::describe_tuning() const { return impl_->tuning.describe(); }
const TargetSetup& setup_of(Engine& engine) { return engine.impl().setup; }

std::string Engine::source(const DecodePlan& plan) const {
    const DecodePlan::Impl& host = plan.impl();
    return render(decode_key(host.problem, host.config, impl_->setup.target)).source;
}

std::vector<std::byte> Engine::binary(DecodePlan& plan) {
    prepare(plan);
    const DecodePlan::Impl& host = plan.impl();
    jit::Origin origin = jit::Origin::memory;
    return impl_->kernel(decode_key(host.problem, host.config, impl_->setup.target), &origin)->artifact->payload;
}

}  // namespace sapwood
