// SPDX-License-Identifier: Apache-2.0
// The kernels of one engine: found, made, waited for, counted. Shared with the engine's plans, which may outlive it.
#pragma once

#include <atomic>
#include <condition_variable>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <vector>

#include "base/once_cache.h"
#include "base/process.h"
#include "base/thread_pool.h"
#include "engine/kernel_table.h"
#include "engine/target.h"
#include "engine/tuning.h"
#include "jit/disk_cache.h"
#include "sapwood/engine.h"

namespace sapwood {

class KernelService {
public:
    explicit KernelService(EngineOptions options);
    ~KernelService();

    const EngineOptions options;
    const std::uint64_t identity;  // tells engines apart for good: the next one may lie where the last one lay
    TargetSetup setup;
    jit::DiskCache cache;
    std::unique_ptr<Tuning> tuning;  // what configurations are chosen by; reads the bundles that are there at the start

    /// Null if it is not ready. No lock.
    Kernel* find(const KernelKey& key) { return state_.get().table.find(key); }
    /// Ready when it returns: found, fetched or compiled, and loaded. After seal() a miss is what the policy says, unless the
    /// caller has asked admit_miss() already.
    Kernel* get(const KernelKey& key, jit::Origin* origin = nullptr, bool admitted = false);
    /// The same without an exception: null, with the reason in `fault`.
    Kernel* try_get(const KernelKey& key, jit::Origin* origin, std::string* fault, bool admitted = false) noexcept;
    /// The compiled bytes without loading them.
    std::shared_ptr<const jit::Artifact> artifact(const KernelKey& key, jit::Origin* origin);

    /// Has a thread make it ready, unless one does already or it has failed before.
    void request(const KernelKey& key);
    std::string failure(const KernelKey& key);  // of a request; empty: none
    void finish_requests();
    /// The ready kernel of the same problem whose tiles are nearest; null if there is none. The same answer for the same ready set.
    Kernel* nearest(const KernelKey& key);

    void seal(SealPolicy policy) { sealed_.store(1 + static_cast<int>(policy), std::memory_order_release); }
    bool sealed_as(SealPolicy policy) const { return sealed_.load(std::memory_order_acquire) == 1 + static_cast<int>(policy); }
    bool sealed() const { return sealed_.load(std::memory_order_acquire) != 0; }
    /// A call needs a kernel that is not ready: counts it after seal() and throws, warns or lets it pass as the policy says.
    void admit_miss(const KernelKey& key);
    /// Calls are served by the nearest kernel rather than wait.
    bool stands_in() const {
        if (sealed()) return sealed_as(SealPolicy::nearest) || (sealed_as(SealPolicy::warn) && in_background());
        return in_background();
    }
    bool in_background() const { return setup.memory != nullptr && options.compile != CompilePolicy::blocking; }

    ThreadPool& pool() { return state_.get().pool; }
    bool add_bundle(const std::filesystem::path& path, const std::string& expected_digest);

    /// What bundles have attached under names that begin with `prefix` (tuning records: "tune/"); of one name, the first bundle's.
    std::map<std::string, std::vector<std::byte>> attachments(std::string_view prefix) const;

    EngineStats stats() const;
    std::vector<KernelUse> uses() const;

    struct Counters {
        std::atomic<std::uint64_t> launches{0}, compiles{0}, bundle_hits{0}, disk_hits{0}, memory_hits{0}, compile_us{0};
        std::atomic<std::uint64_t> misses_after_seal{0}, compiles_after_seal{0}, stand_in_launches{0}, switches{0};
        std::atomic<std::uint64_t> background_compiles{0}, background_failures{0};
    } counters;

private:
    /// What a forked child has to make anew.
    struct State {
        explicit State(unsigned threads) : pool(threads) {}
        OnceCache<KernelKey, Kernel> building;
        KernelTable table;
        std::mutex mutex;
        std::condition_variable done;
        std::set<KernelKey> pending;              // requested, not ready
        std::map<KernelKey, std::string> failed;  // requested, and why it will not be
        ThreadPool pool;                          // last: its jobs use the others
    };

    Kernel* find_counted(const KernelKey& key);
    Kernel* build(const KernelKey& key, jit::Origin* origin);
    void run_request(State& state, const KernelKey& key);

    std::atomic<int> sealed_{0};       // 1 + SealPolicy
    mutable PerProcess<State> state_;  // last: its threads use the others
};

/// Every service of this process that is alive, oldest first: for metrics().
std::vector<std::shared_ptr<KernelService>> live_services();
/// Made and registered.
std::shared_ptr<KernelService> make_service(EngineOptions options);

}  // namespace sapwood
