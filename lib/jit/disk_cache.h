// SPDX-License-Identifier: Apache-2.0
// Content-addressed store of artifacts on disk, one checksummed file an entry. The disk is an accelerator, never a dependency:
// every failure here costs a compile and at most one warning, and none is an exception.
#pragma once

#include <chrono>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "base/digest.h"
#include "jit/bundle.h"
#include "jit/compile.h"

namespace sapwood::jit {

/// Where an artifact came from.
enum class Origin { memory, bundle, disk, compiled };
const char* origin_name(Origin origin) noexcept;

/// The content digest: schema, template set, source, entry, options, target, compiler identity; no path, no host, no driver. With a
/// compiler's family in place of its identity: the source digest, under which any build's artifact is found.
Digest content_digest(const CompileRequest& request, std::string_view compiler_identity);

struct CacheCounters {
    std::uint64_t disk_hits = 0, misses = 0, corrupt = 0, published = 0, publish_failures = 0, lock_timeouts = 0;
    std::uint64_t bundle_hits = 0, bundle_damaged = 0;
};

struct CacheEntryInfo {
    std::filesystem::path path;
    std::string digest, name, target, compiler;
    std::uint64_t bytes = 0;
    std::int64_t mtime = 0;
    double compile_ms = 0;
    Resources resources;
    std::string fault;  // empty = verifies
};

struct DiskCacheOptions {
    std::chrono::milliseconds lock_deadline{30'000};   // wait for another process's compile this long, then compile as well
    std::uint64_t max_bytes = std::uint64_t{1} << 30;  // collected down to 80 % of it, at most once a day, after a publish
};

class DiskCache {
public:
    /// root = explicit path, else SAPWOOD_CACHE_DIR, else $XDG_CACHE_HOME/sapwood, else $HOME/.cache/sapwood, else none (memory
    /// only). An empty path asks for that search; std::nullopt disables the disk, as does SAPWOOD_DISK_CACHE=0. The directory is
    /// made here, if need be; one that cannot be used costs one warning.
    explicit DiskCache(std::optional<std::filesystem::path> root, DiskCacheOptions options = {});
    ~DiskCache();

    /// Lookup order: memory, bundles, disk, bounded cross-process lock, disk again, compile, publish best effort. A kernel that a
    /// bundle holds needs neither compiler nor disk. Where the compiler is missing, the artifact that its family made of this
    /// source last. Throws only what `compiler` throws. Concurrent callers in one process with one digest compile once; what was
    /// got stays in memory. Usable in a forked child, which starts with an empty memory level.
    std::shared_ptr<const Artifact> get_or_compile(const CompileRequest& request, Compiler& compiler, Origin* origin = nullptr);
    /// From now on looked into, after those added before.
    void add_bundle(std::shared_ptr<const Bundle> bundle);
    std::vector<std::shared_ptr<const Bundle>> bundles() const;

    /// Disk only: null on a miss or a bad entry (which is removed).
    std::shared_ptr<const Artifact> find(const Digest& digest);

    const std::filesystem::path& root() const;  // empty when memory only
    std::string disabled_reason() const;        // why it is memory only, or why nothing more is written; empty when healthy
    CacheCounters counters() const;

    /// Maintenance, for `sapwood cache`: every entry with its health; removal of those not used for `max_age`, then of the oldest
    /// down to a byte cap; removal of all.
    std::vector<CacheEntryInfo> list(bool verify) const;
    std::uint64_t collect(std::uint64_t max_bytes, std::chrono::seconds max_age = std::chrono::seconds::max());  // bytes removed
    std::uint64_t clear();  // entries removed; never lock files

private:
    struct Impl;
    std::unique_ptr<Impl> impl_;
};

/// The entry file (`.swk`): fixed header, JSON metadata, payload; layout in entry_file.cpp. Exposed for tests and `sapwood
/// inspect`.
std::vector<std::byte> encode_entry(const Artifact& artifact, const Digest& digest);
/// Null plus a reason in `fault` unless every byte verifies against the header, the checksum and `expect` (if given).
std::shared_ptr<const Artifact> decode_entry(std::span<const std::byte> file, const Digest* expect, std::string* fault);

}  // namespace sapwood::jit
