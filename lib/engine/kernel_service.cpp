// SPDX-License-Identifier: Apache-2.0
#include "engine/kernel_service.h"

#include <algorithm>
#include <cmath>

#include "base/env.h"
#include "base/error.h"
#include "base/log.h"
#include "host/host.h"
#include "kernel/key_text.h"
#include "kernel/render.h"
#include "kernel/template_store.h"
#include "plan/tiles.h"

namespace sapwood {
namespace {

std::uint64_t next_identity() {
    static std::atomic<std::uint64_t> next{1};
    return next.fetch_add(1, std::memory_order_relaxed);
}

struct Registry {
    std::mutex mutex;
    std::vector<std::weak_ptr<KernelService>> services;
};

Registry& registry() {
    static auto* const all = new PerProcess<Registry>([] { return std::make_unique<Registry>(); });  // engines may outlive statics
    return all->get();
}

/// How unlike two tile shapes are: what a block holds counts most, the depth of its ring least.
double distance(const KernelKey& a, const KernelKey& b) {
    const auto octaves = [](int x, int y) { return std::abs(std::log2(static_cast<double>(x) / y)); };
    return 4 * (a.mainloop != b.mainloop) + 4 * octaves(a.warps, b.warps) + 4 * octaves(a.block_kv, b.block_kv) +
           2 * std::abs(a.blocks - b.blocks) + octaves(a.producers, b.producers) + 0.5 * std::abs(a.stages - b.stages);
}

}  // namespace

KernelService::KernelService(EngineOptions given)
    : options(std::move(given)),
      identity(next_identity()),
      setup(open_target(options)),
      cache(options.disk_cache && env::get("SAPWOOD_DISK_CACHE").value_or("1") != "0"
                ? std::optional<std::filesystem::path>(options.cache_dir)
                : std::nullopt),
      state_([threads = options.compile_threads] { return std::make_unique<State>(threads); }) {
    for (const auto& bundle : options.bundles) add_bundle(bundle, {});
    const std::string listed = env::get("SAPWOOD_BUNDLE_PATH").value_or("");
    for (std::size_t at = 0; at < listed.size();) {
        const std::size_t end = std::min(listed.find(':', at), listed.size());
        if (end > at) add_bundle(listed.substr(at, end - at), {});
        at = end + 1;
    }
    tuning = std::make_unique<Tuning>(options, setup, cache.root(), attachments("tune/"));
}

KernelService::~KernelService() = default;

bool KernelService::add_bundle(const std::filesystem::path& path, const std::string& expected_digest) {
    const auto refuse = [&](const std::string& why) {
        log::warning_once("bundle:" + path.string() + why, "bundle " + path.string() + " is not used: " + why);
        return false;
    };
    std::optional<Digest> expected;
    if (!expected_digest.empty()) {
        expected = parse_digest(expected_digest);
        if (!expected) return refuse("the expected digest \"" + expected_digest + "\" is not 64 lower-case hex digits");
    }
    std::string fault;
    auto bundle = jit::Bundle::open(path, &fault, expected ? &*expected : nullptr);
    if (bundle == nullptr) return refuse(fault);
    if (bundle->template_set() != template_set_digest())
        return refuse("its kernels were made of templates " + bundle->template_set().substr(0, 16) + "…, this library has " +
                      std::string(template_set_digest().substr(0, 16)) + "…. Pack it again with this build of Sapwood");
    cache.add_bundle(std::move(bundle));
    return true;
}

std::map<std::string, std::vector<std::byte>> KernelService::attachments(std::string_view prefix) const {
    std::map<std::string, std::vector<std::byte>> found;
    for (const auto& bundle : cache.bundles()) {
        for (const jit::BundleAttachment& attachment : bundle->attachments()) {
            if (!attachment.name.starts_with(prefix) || found.contains(attachment.name)) continue;
            std::string fault;
            if (auto bytes = bundle->read(attachment, &fault)) {
                found.emplace(attachment.name, std::move(*bytes));
            } else {
                log::warning_once("bundle-damaged:" + bundle->path().string(),
                                  "bundle " + bundle->path().string() + ": " + attachment.name + ": " + fault + "; it is left out");
            }
        }
    }
    return found;
}

std::shared_ptr<const jit::Artifact> KernelService::artifact(const KernelKey& key, jit::Origin* origin) {
    auto result = cache.get_or_compile(render(key), *setup.compiler, origin);
    switch (*origin) {
        case jit::Origin::compiled:
            ++counters.compiles;
            if (sealed()) ++counters.compiles_after_seal;
            counters.compile_us += static_cast<std::uint64_t>(result->compile_ms * 1000);
            break;
        case jit::Origin::bundle:
            ++counters.bundle_hits;
            break;
        case jit::Origin::disk:
            ++counters.disk_hits;
            break;
        case jit::Origin::memory:
            ++counters.memory_hits;
            break;
    }
    return result;
}

Kernel* KernelService::build(const KernelKey& key, jit::Origin* origin) {
    State& state = state_.get();
    const auto kernel = state.building.get_or_create(key, [&] {
        auto made = std::make_shared<Kernel>();
        made->key = key;
        made->artifact = artifact(key, origin);
        made->origin = *origin;
        if (setup.is_host) {
            made->loaded =
                host::load(*made->artifact, {.schedule_seed = options.host_schedule_seed, .os_threads = options.host_threads});
        } else if (setup.device) {
            made->loaded = setup.device->load(*made->artifact, shared_bytes_of(key));
            made->blocks_per_sm = setup.device->occupancy(*made->loaded, threads_of(key), shared_bytes_of(key));
            if (made->blocks_per_sm < key.blocks) {
                log::warning_once(key.to_string(), "kernel " + key.to_string() + " reaches " + std::to_string(made->blocks_per_sm) +
                                                       " blocks an SM where " + std::to_string(key.blocks) + " were planned");
            }
        }
        log::info("kernel " + key.to_string() + ": " + jit::origin_name(*origin) + ", " +
                  std::to_string(made->artifact->resources.registers) + " registers, " +
                  std::to_string(made->artifact->resources.spill_bytes) + " spill bytes");
        return made;
    });
    return state.table.publish(kernel);
}

void KernelService::admit_miss(const KernelKey& key) {
    if (!sealed()) return;
    ++counters.misses_after_seal;
    const std::string text = key.to_string();
    if (sealed_as(SealPolicy::warn)) {
        log::warning_once("sealed:" + std::to_string(identity) + text,
                          "the engine is sealed and kernel " + text +
                              " was not prepared; it is compiled now. Prepare it before seal(): prepare_keys({\"" + text + "\"})");
        return;
    }
    raise(ErrorCode::kNotPrepared,
          "the engine is sealed and kernel " + text + " was not prepared" +
              (sealed_as(SealPolicy::nearest) ? ", nor is any kernel of the same problem that could stand in" : "") +
              "; prepare a plan that needs it before seal(), or prepare_keys({\"" + text + "\"})");
}

Kernel* KernelService::find_counted(const KernelKey& key) {
    Kernel* present = find(key);
    if (present != nullptr) counters.memory_hits.fetch_add(1, std::memory_order_relaxed);
    return present;
}

Kernel* KernelService::get(const KernelKey& key, jit::Origin* origin, bool admitted) {
    jit::Origin unused{};
    if (origin == nullptr) origin = &unused;
    *origin = jit::Origin::memory;
    if (Kernel* present = find_counted(key)) return present;
    if (!admitted) admit_miss(key);
    return build(key, origin);
}

Kernel* KernelService::try_get(const KernelKey& key, jit::Origin* origin, std::string* fault, bool admitted) noexcept {
    try {
        return get(key, origin, admitted);
    } catch (const Error& error) {
        *fault = std::string(error.what()) + (error.detail().empty() ? "" : "\n" + error.detail());
    } catch (const std::exception& error) {
        *fault = error.what();
    }
    return nullptr;
}

std::string KernelService::failure(const KernelKey& key) {
    State& state = state_.get();
    std::lock_guard lock(state.mutex);
    const auto found = state.failed.find(key);
    return found != state.failed.end() ? found->second : std::string();
}

void KernelService::request(const KernelKey& key) {
    State& state = state_.get();
    {
        std::lock_guard lock(state.mutex);
        if (state.failed.contains(key) || !state.pending.insert(key).second) return;
    }
    if (state.pool.run([this, &state, key] { run_request(state, key); })) return;
    std::lock_guard lock(state.mutex);
    state.pending.erase(key);
    state.failed[key] = "no thread could be started";
    ++counters.background_failures;
}

void KernelService::run_request(State& state, const KernelKey& key) {
    jit::Origin origin{};
    std::string fault;
    if (try_get(key, &origin, &fault, /*admitted=*/true) == nullptr) {
        ++counters.background_failures;
        log::error("kernel " + key.to_string() +
                   " cannot be made ready in the background; calls go on with what is ready: " + fault);
    } else if (origin == jit::Origin::compiled) {
        ++counters.background_compiles;
    }
    {
        std::lock_guard lock(state.mutex);
        if (!fault.empty()) state.failed[key] = fault;
        state.pending.erase(key);
    }
    state.done.notify_all();
}

void KernelService::finish_requests() {
    State& state = state_.get();
    std::unique_lock lock(state.mutex);
    state.done.wait(lock, [&] { return state.pending.empty(); });
}

Kernel* KernelService::nearest(const KernelKey& key) {
    Kernel* best = nullptr;
    double least = 0;
    state_.get().table.each([&](Kernel& kernel) {
        if (!same_problem(key, kernel.key) || (setup.memory && kernel.loaded == nullptr)) return;
        if (!why_illegal(problem_of(key), config_of(kernel.key), setup.limits).empty()) return;
        const double its = distance(key, kernel.key);
        if (best == nullptr || its < least || (its == least && kernel.key < best->key)) best = &kernel, least = its;
    });
    return best;
}

EngineStats KernelService::stats() const {
    EngineStats stats = {.launches = counters.launches,
                         .compiles = counters.compiles,
                         .disk_hits = counters.disk_hits,
                         .memory_hits = counters.memory_hits,
                         .misses_after_seal = counters.misses_after_seal,
                         .compile_ms = static_cast<double>(counters.compile_us) / 1000.0,
                         .bundle_hits = counters.bundle_hits,
                         .compiles_after_seal = counters.compiles_after_seal,
                         .stand_in_launches = counters.stand_in_launches,
                         .background_compiles = counters.background_compiles,
                         .background_failures = counters.background_failures,
                         .switches = counters.switches};
    tuning->count_into(stats);
    return stats;
}

std::vector<KernelUse> KernelService::uses() const {
    std::vector<KernelUse> all;
    state_.get().table.each([&](const Kernel& kernel) {
        all.push_back({.key = kernel.key.to_string(),
                       .origin = jit::origin_name(kernel.origin),
                       .calls = kernel.calls,
                       .stand_in_calls = kernel.stand_in_calls,
                       .compile_ms = kernel.artifact->compile_ms});
    });
    std::sort(all.begin(), all.end(), [](const KernelUse& a, const KernelUse& b) { return a.key < b.key; });
    return all;
}

std::shared_ptr<KernelService> make_service(EngineOptions options) {
    auto made = std::make_shared<KernelService>(std::move(options));
    Registry& all = registry();
    std::lock_guard lock(all.mutex);
    std::erase_if(all.services, [](const auto& service) { return service.expired(); });
    all.services.push_back(made);
    return made;
}

std::vector<std::shared_ptr<KernelService>> live_services() {
    std::vector<std::shared_ptr<KernelService>> live;
    Registry& all = registry();
    std::lock_guard lock(all.mutex);
    for (const auto& service : all.services) {
        if (auto held = service.lock()) live.push_back(std::move(held));
    }
    return live;
}

}  // namespace sapwood
