// SPDX-License-Identifier: Apache-2.0
// What a lookup does with the files; maintenance is in cache_upkeep.cpp.
#include "jit/object_store.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <ctime>

#include "base/env.h"
#include "base/log.h"
#include "base/publish.h"
#include "jit/entry_file.h"

namespace sapwood::jit {
namespace fs = std::filesystem;
namespace {

constexpr std::int64_t kDay = 24 * 60 * 60;

/// Failures that the next entry would meet as well.
bool hits_every_entry(int error) {
    return error == ENOSPC || error == EDQUOT || error == EROFS || error == EACCES || error == EPERM || error == ENOTDIR;
}

}  // namespace

ObjectStore::ObjectStore(const std::optional<fs::path>& asked, std::uint64_t max_bytes)
    : root_(open_cache_root(asked)), max_bytes_(max_bytes), sync_(root_.local && env::flag("SAPWOOD_CACHE_FSYNC")) {
    if (!root_.cause.empty()) log::warning_once(root_.cause, root_.reason);
}

ObjectStore::~ObjectStore() { delete disabled_.load(); }

std::string ObjectStore::disabled_reason() const {
    if (!readable()) return root_.reason;
    const std::string* reason = disabled_.load(std::memory_order_acquire);
    return reason != nullptr ? *reason : std::string();
}

void ObjectStore::stop_writing(const std::string& reason) {
    auto made = std::make_unique<const std::string>(reason);
    const std::string* none = nullptr;
    if (disabled_.compare_exchange_strong(none, made.get(), std::memory_order_acq_rel)) made.release();
    log::warning_once("cache-unwritable", reason + "; kernels compiled from now on are kept in memory only");
}

fs::path ObjectStore::entry_path(const Digest& digest) const {
    const std::string hex = to_hex(digest);
    return root_.path / "v1" / "objects" / hex.substr(0, 2) / (hex.substr(2) + ".swk");
}

fs::path ObjectStore::reference_path(const Digest& source) const {
    const std::string hex = to_hex(source);
    return root_.path / "v1" / "sources" / hex.substr(0, 2) / (hex.substr(2) + ".ref");
}

std::shared_ptr<const Artifact> ObjectStore::read(const Digest& digest) {
    if (!readable()) return nullptr;
    const fs::path path = entry_path(digest);
    EntryBytes entry = read_entry_file(path);
    if (entry.error != 0) {  // no such entry; or unreadable (permissions, descriptors, I/O), which a publish may heal
        if (entry.error != ENOENT) log::debug("cannot read cache entry " + path.string() + ": " + errno_text(entry.error));
        return nullptr;
    }
    std::shared_ptr<const Artifact> artifact;
    if (entry.fault.empty()) artifact = decode_entry(entry.bytes, &digest, &entry.fault);
    if (artifact == nullptr) {
        discard(path, entry.fault);
        return nullptr;
    }
    counters.disk_hits.fetch_add(1, std::memory_order_relaxed);
    // Last use, for collect(). Not atime, which most mounts do not keep; rarely, since this is a write on a path of reads.
    if (entry.mtime + kDay < std::time(nullptr)) ::utimensat(AT_FDCWD, path.c_str(), nullptr, AT_SYMLINK_NOFOLLOW);
    return artifact;
}

void ObjectStore::discard(const fs::path& path, const std::string& fault) {
    counters.corrupt.fetch_add(1, std::memory_order_relaxed);
    log::debug("discarding cache entry " + path.string() + ": " + fault);
    // If another process has just replaced it by a good one, that one goes, and costs a compile.
    if (::unlink(path.c_str()) != 0 && (errno == EISDIR || errno == EPERM)) ::rmdir(path.c_str());
}

bool ObjectStore::publish(const Digest& digest, const Artifact& artifact) {
    if (!writable()) return false;
    if (const std::string fault = payload_fault(artifact.kind, artifact.payload); !fault.empty()) {
        log::debug("not caching " + artifact.name + ": " + fault);
        return false;
    }
    const std::vector<std::byte> bytes = encode_entry(artifact, digest);
    if (bytes.size() > kMaxEntryBytes) {
        log::debug("not caching " + artifact.name + ": " + std::to_string(bytes.size()) + " bytes");
        return false;
    }
    const PublishResult result = publish_file(root_.path, entry_path(digest), bytes, {sync_, root_.file_mode(), root_.dir_mode()});
    if (result) {
        counters.published.fetch_add(1, std::memory_order_relaxed);
        return true;
    }
    counters.publish_failures.fetch_add(1, std::memory_order_relaxed);
    if (hits_every_entry(result.error)) {
        stop_writing(result.text());
    } else {
        log::warning_once("cache-entry-unwritable", result.text() + "; this kernel is kept in memory only");
    }
    return false;
}

void ObjectStore::publish_reference(const Digest& source, const Digest& entry) {
    if (!writable()) return;
    // Not flushed: a reference that a power cut has spoilt is no reference.
    const PublishResult result = publish_file(root_.path, reference_path(source), encode_reference(source, entry),
                                              {false, root_.file_mode(), root_.dir_mode()});
    if (!result) log::debug("no reference to cache entry " + to_hex(entry) + ": " + result.text());
}

std::shared_ptr<const Artifact> ObjectStore::read_by_source(const Digest& source) {
    if (!readable()) return nullptr;
    const EntryBytes file = read_entry_file(reference_path(source));
    const std::optional<Digest> entry = decode_reference(file.bytes, source);
    return entry ? read(*entry) : nullptr;
}

std::unique_ptr<ProcessLock> ObjectStore::lock(const Digest& digest) const {
    if (!writable() || !root_.local) return nullptr;
    const fs::path locks = root_.path / "v1" / "locks";
    if (make_directories(locks, root_.dir_mode()) != 0) return nullptr;
    // The file is the first byte, the place in it the next seven: two kernels never wait for each other.
    std::int64_t offset = 0;
    for (int i = 1; i < 8; ++i) offset = offset << 8 | digest[i];
    return std::make_unique<ProcessLock>(locks / (to_hex(digest).substr(0, 2) + ".lock"), offset, root_.file_mode());
}

void ObjectStore::upkeep() {
    const std::int64_t now = std::time(nullptr);
    std::int64_t due = next_upkeep_.load(std::memory_order_relaxed);
    if (!writable() || now < due || !next_upkeep_.compare_exchange_strong(due, now + kDay)) return;
    sweep_temporaries(root_.path, std::chrono::hours(1));
    // The stamp's mtime is the last collection by any process; a stamp that is new means a cache that is new.
    ProcessLock stamp(root_.path / "v1" / "stamp", 0, root_.file_mode());
    struct stat info {};
    if (stamp.fd() < 0 || ::fstat(stamp.fd(), &info) != 0 || now < info.st_mtime + kDay) return;
    if (root_.local && stamp.try_acquire() == ProcessLock::Attempt::busy) return;
    ::futimens(stamp.fd(), nullptr);
    if (collect(max_bytes_) != 0) collect(max_bytes_ / 5 * 4);  // only a cache past its cap is brought down to 80 %
}

}  // namespace sapwood::jit
