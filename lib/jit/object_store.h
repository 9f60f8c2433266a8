// SPDX-License-Identifier: Apache-2.0
// Private to jit: the files under <root>/v1. Every method is thread-safe without a mutex, and none throws for what the disk does.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "base/digest.h"
#include "jit/cache_root.h"
#include "jit/disk_cache.h"
#include "jit/process_lock.h"

namespace sapwood::jit {

class ObjectStore {
public:
    ObjectStore(const std::optional<std::filesystem::path>& asked, std::uint64_t max_bytes);
    ~ObjectStore();

    const std::filesystem::path& root() const { return root_.path; }
    bool readable() const { return !root_.path.empty(); }
    bool writable() const { return readable() && disabled_.load(std::memory_order_acquire) == nullptr; }
    std::string disabled_reason() const;

    std::filesystem::path entry_path(const Digest& digest) const;
    std::filesystem::path reference_path(const Digest& source) const;
    /// Null on a miss, and for a bad entry, which is removed and counted.
    std::shared_ptr<const Artifact> read(const Digest& digest);
    /// False if it is not there now.
    bool publish(const Digest& digest, const Artifact& artifact);
    /// Notes that `entry` is the latest artifact of `source`, a digest of everything but the compiler's build.
    void publish_reference(const Digest& source, const Digest& entry);
    /// The artifact that was noted last; null if there is none, or it is gone or bad.
    std::shared_ptr<const Artifact> read_by_source(const Digest& source);
    /// The lock under which one process compiles `digest`; null where locks are not to be trusted or would spare no work.
    std::unique_ptr<ProcessLock> lock(const Digest& digest) const;
    /// Sweeps old temporaries and collects past the byte cap: at most once a day.
    void upkeep();

    std::vector<CacheEntryInfo> list(bool verify) const;
    std::uint64_t collect(std::uint64_t max_bytes, std::chrono::seconds max_age = std::chrono::seconds::max()) const;
    std::uint64_t clear() const;

    struct Counters {
        std::atomic<std::uint64_t> disk_hits{0}, misses{0}, corrupt{0}, published{0}, publish_failures{0}, lock_timeouts{0};
    } counters;

private:
    void discard(const std::filesystem::path& path, const std::string& fault);
    void stop_writing(const std::string& reason);

    CacheRoot root_;
    std::uint64_t max_bytes_;
    bool sync_;
    std::atomic<const std::string*> disabled_{nullptr};  // set once: a lock-free, fork-proof string
    std::atomic<std::int64_t> next_upkeep_{0};
};

}  // namespace sapwood::jit
