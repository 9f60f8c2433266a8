// SPDX-License-Identifier: Apache-2.0
#include "jit/disk_cache.h"

#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <thread>

#include "base/error.h"
#include "base/log.h"
#include "base/once_cache.h"
#include "jit/bundle_list.h"
#include "jit/object_store.h"

namespace sapwood::jit {
namespace {

using Artifacts = OnceCache<Digest, const Artifact>;
using Clock = std::chrono::steady_clock;

/// The memory level of one process. A forked child gets one of its own: in the parent's, a mutex may be locked and a compile may be
/// under way, by threads that the child does not have.
struct Memory {
    pid_t pid;
    Artifacts artifacts;
    Artifacts bundled;  // by source digest; null: no sound one
};

}  // namespace

struct DiskCache::Impl {
    Impl(const std::optional<std::filesystem::path>& asked, DiskCacheOptions options_)
        : store(asked, options_.max_bytes), options(options_), memory(new Memory{::getpid(), {}, {}}) {}

    ~Impl() {
        Memory* mine = memory.load();
        if (mine->pid == ::getpid()) delete mine;  // the parent's is left alone, for the same reason
    }

    Artifacts& artifacts() { return own_memory().artifacts; }

    Memory& own_memory() {
        Memory* seen = memory.load(std::memory_order_acquire);
        if (seen->pid == ::getpid()) return *seen;
        auto fresh = std::make_unique<Memory>();
        fresh->pid = ::getpid();
        // On failure another thread of the child was faster, and `seen` is its work.
        if (memory.compare_exchange_strong(seen, fresh.get(), std::memory_order_acq_rel)) return *fresh.release();
        return *seen;
    }

    std::shared_ptr<const Artifact> load_or_compile(const Digest& digest, const CompileRequest& request, Compiler& compiler,
                                                    Origin& origin);
    std::shared_ptr<const Artifact> from_bundle(const CompileRequest& request, Compiler& compiler, Origin& origin);
    std::shared_ptr<const Artifact> wait_for(ProcessLock& lock, const Digest& digest);
    std::shared_ptr<const Artifact> without_compiler(const CompileRequest& request, Compiler& compiler, Origin& origin,
                                                     const Error& error);

    ObjectStore store;
    DiskCacheOptions options;
    BundleList bundles;
    std::atomic<std::uint64_t> bundle_hits{0}, bundle_damaged{0};
    std::atomic<Memory*> memory;
};

/// Asked before the compiler is even looked for. Null if no bundle has it.
std::shared_ptr<const Artifact> DiskCache::Impl::from_bundle(const CompileRequest& request, Compiler& compiler, Origin& origin) {
    if (bundles.all().empty()) return nullptr;
    const Digest source = content_digest(request, compiler.family());
    bool looked = false;
    const auto look = [&] {
        looked = true;
        auto found = bundles.read(source, bundle_damaged);
        if (found != nullptr) origin = Origin::bundle, bundle_hits.fetch_add(1, std::memory_order_relaxed);
        return found;
    };
    // What no bundle had then may be in one that was added since.
    auto found = own_memory().bundled.get_or_create(source, look);
    return found != nullptr || looked ? found : look();
}

/// Returns with the lock held, or with what another process has published meanwhile, or with neither: then this process compiles
/// what another one may be compiling too, which is waste but never a hang.
std::shared_ptr<const Artifact> DiskCache::Impl::wait_for(ProcessLock& lock, const Digest& digest) {
    const Clock::time_point deadline = Clock::now() + options.lock_deadline;
    for (std::chrono::milliseconds delay{1};; delay = std::min(2 * delay, std::chrono::milliseconds(50))) {
        const ProcessLock::Attempt attempt = lock.try_acquire();
        if (attempt == ProcessLock::Attempt::unavailable) return nullptr;
        // Also once the lock is held: it may have been published between the first look and now.
        if (auto found = store.read(digest)) return found;
        if (attempt == ProcessLock::Attempt::acquired) return nullptr;
        if (Clock::now() >= deadline) {
            store.counters.lock_timeouts.fetch_add(1, std::memory_order_relaxed);
            log::debug("another process holds the lock for kernel " + to_hex(digest) + " past the deadline; compiling it here too");
            return nullptr;
        }
        std::this_thread::sleep_for(delay);
    }
}

std::shared_ptr<const Artifact> DiskCache::Impl::load_or_compile(const Digest& digest, const CompileRequest& request,
                                                                 Compiler& compiler, Origin& origin) {
    origin = Origin::disk;
    if (auto found = store.read(digest)) return found;
    std::unique_ptr<ProcessLock> lock = store.lock(digest);
    if (lock != nullptr) {
        if (auto found = wait_for(*lock, digest)) return found;
    }
    origin = Origin::compiled;
    store.counters.misses.fetch_add(1, std::memory_order_relaxed);
    auto artifact = std::make_shared<const Artifact>(compiler.compile(request));
    if (store.publish(digest, *artifact)) store.publish_reference(content_digest(request, compiler.family()), digest);
    lock.reset();  // before upkeep: others may read now
    store.upkeep();
    return artifact;
}

/// A warm cache serves where the compiler is gone: whichever build made the artifact, it was made of this very source.
std::shared_ptr<const Artifact> DiskCache::Impl::without_compiler(const CompileRequest& request, Compiler& compiler, Origin& origin,
                                                                  const Error& error) {
    const Digest source = content_digest(request, compiler.family());
    origin = Origin::memory;
    return artifacts().get_or_create(source, [&] {
        origin = Origin::disk;
        if (auto found = store.read_by_source(source)) return found;
        const std::string why = std::string(error.what()).substr(std::string(error_code_name(error.code())).size() + 2);
        std::string where = store.readable() ? " is not in the kernel cache " + store.root().string() : " is in no kernel cache";
        if (const std::size_t count = bundles.all().size(); count != 0)
            where += ", nor in the " + std::to_string(count) + " bundles given";
        raise(ErrorCode::kNoCompiler, "kernel " + request.name + where + ", and " + why, error.detail());
    });
}

DiskCache::DiskCache(std::optional<std::filesystem::path> root, DiskCacheOptions options)
    : impl_(std::make_unique<Impl>(root, options)) {}
DiskCache::~DiskCache() = default;

std::shared_ptr<const Artifact> DiskCache::get_or_compile(const CompileRequest& request, Compiler& compiler, Origin* origin) {
    Origin from = Origin::memory;  // also for a caller that waits for another thread's compile
    std::shared_ptr<const Artifact> artifact;
    try {
        artifact = impl_->from_bundle(request, compiler, from);
        if (artifact == nullptr) {
            const Digest digest = content_digest(request, compiler.identity());
            artifact =
                impl_->artifacts().get_or_create(digest, [&] { return impl_->load_or_compile(digest, request, compiler, from); });
        }
    } catch (const Error& error) {
        if (error.code() != ErrorCode::kNoCompiler) throw;
        artifact = impl_->without_compiler(request, compiler, from, error);
    }
    if (origin != nullptr) *origin = from;
    return artifact;
}

std::shared_ptr<const Artifact> DiskCache::find(const Digest& digest) { return impl_->store.read(digest); }
const std::filesystem::path& DiskCache::root() const { return impl_->store.root(); }
std::string DiskCache::disabled_reason() const { return impl_->store.disabled_reason(); }
std::vector<CacheEntryInfo> DiskCache::list(bool verify) const { return impl_->store.list(verify); }
std::uint64_t DiskCache::collect(std::uint64_t max_bytes, std::chrono::seconds max_age) {
    return impl_->store.collect(max_bytes, max_age);
}
void DiskCache::add_bundle(std::shared_ptr<const Bundle> bundle) { impl_->bundles.add(std::move(bundle)); }
std::vector<std::shared_ptr<const Bundle>> DiskCache::bundles() const { return impl_->bundles.all(); }
std::uint64_t DiskCache::clear() { return impl_->store.clear(); }

CacheCounters DiskCache::counters() const {
    const ObjectStore::Counters& now = impl_->store.counters;
    return {now.disk_hits,        now.misses,        now.corrupt,        now.published,
            now.publish_failures, now.lock_timeouts, impl_->bundle_hits, impl_->bundle_damaged};
}

const char* origin_name(Origin origin) noexcept {
    switch (origin) {
        case Origin::memory:
            return "memory";
        case Origin::bundle:
            return "bundle";
        case Origin::disk:
            return "disk";
        case Origin::compiled:
            return "compiled";
    }
    return "unknown";
}

}  // namespace sapwood::jit
