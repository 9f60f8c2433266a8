// SPDX-License-Identifier: Apache-2.0
// Listing and removal. Safe beside processes that read or publish: they hold open descriptors, or miss and compile.
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <ctime>
#include <system_error>

#include "base/publish.h"
#include "jit/entry_file.h"
#include "jit/object_store.h"

namespace sapwood::jit {
namespace fs = std::filesystem;
namespace {

struct EntryFile {
    fs::path path;
    std::uint64_t bytes = 0;
    std::int64_t mtime = 0;
};

/// Every *.swk below objects/, whatever it is. Entries that vanish meanwhile are left out.
std::vector<EntryFile> entry_files(const fs::path& root) {
    std::vector<EntryFile> files;
    std::error_code error;
    for (fs::directory_iterator shard(root / "v1" / "objects", error), end; !error && shard != end; shard.increment(error)) {
        std::error_code inner;  // one bad shard does not hide the others
        for (fs::directory_iterator it(shard->path(), inner); !inner && it != end; it.increment(inner)) {
            struct stat info {};
            if (it->path().extension() != ".swk" || ::lstat(it->path().c_str(), &info) != 0) continue;
            files.push_back({it->path(), static_cast<std::uint64_t>(info.st_size), info.st_mtime});
        }
    }
    return files;
}

/// Removes the references below sources/ that `gone` is true for.
template <class Gone>
void remove_references(const fs::path& root, const Gone& gone) {
    std::error_code error;
    for (fs::directory_iterator shard(root / "v1" / "sources", error), end; !error && shard != end; shard.increment(error)) {
        std::error_code inner;
        for (fs::directory_iterator it(shard->path(), inner); !inner && it != end; it.increment(inner)) {
            if (it->path().extension() == ".ref" && gone(it->path())) ::unlink(it->path().c_str());
        }
    }
}

bool remove_entry(const fs::path& path) {
    return ::unlink(path.c_str()) == 0 || ((errno == EISDIR || errno == EPERM) && ::rmdir(path.c_str()) == 0);
}

}  // namespace

std::vector<CacheEntryInfo> ObjectStore::list(bool verify) const {
    std::vector<CacheEntryInfo> entries;
    if (!readable()) return entries;
    for (const EntryFile& file : entry_files(root_.path)) {
        CacheEntryInfo& info = entries.emplace_back();
        info.path = file.path;
        info.bytes = file.bytes;
        info.mtime = file.mtime;
        info.digest = file.path.parent_path().filename().string() + file.path.stem().string();
        EntryBytes entry = read_entry_file(file.path);
        info.fault = entry.error != 0 ? errno_text(entry.error) : entry.fault;
        const std::optional<Digest> digest = parse_digest(info.digest);
        if (info.fault.empty() && !digest) info.fault = "its name is not a digest";
        if (!info.fault.empty()) continue;
        const auto artifact = verify ? decode_entry(entry.bytes, &*digest, &info.fault) : decode_metadata(entry.bytes, &info.fault);
        if (artifact == nullptr) continue;
        info.name = artifact->name;
        info.target = artifact->target;
        info.compiler = artifact->compiler;
        info.compile_ms = artifact->compile_ms;
        info.resources = artifact->resources;
    }
    std::sort(entries.begin(), entries.end(), [](const auto& a, const auto& b) { return a.path < b.path; });
    return entries;
}

std::uint64_t ObjectStore::collect(std::uint64_t max_bytes, std::chrono::seconds max_age) const {
    if (!readable()) return 0;
    std::vector<EntryFile> files = entry_files(root_.path);
    std::sort(files.begin(), files.end(), [](const EntryFile& a, const EntryFile& b) { return a.mtime < b.mtime; });
    std::uint64_t total = 0, removed = 0;
    for (const EntryFile& file : files) total += file.bytes;
    const std::int64_t now = std::time(nullptr);
    for (const EntryFile& file : files) {  // oldest first; its mtime is its last use, to within a day
        if (total - removed <= max_bytes && now - file.mtime <= max_age.count()) break;
        if (remove_entry(file.path)) removed += file.bytes;
    }
    if (removed == 0) return 0;
    remove_references(root_.path, [&](const fs::path& path) {
        const auto source = parse_digest(path.parent_path().filename().string() + path.stem().string());
        if (!source) return true;
        const auto entry = decode_reference(read_entry_file(path).bytes, *source);
        std::error_code error;
        return !entry || !fs::exists(entry_path(*entry), error);
    });
    return removed;
}

std::uint64_t ObjectStore::clear() const {
    if (!readable()) return 0;
    std::uint64_t removed = 0;
    for (const EntryFile& file : entry_files(root_.path)) removed += remove_entry(file.path) ? 1 : 0;
    remove_references(root_.path, [](const fs::path&) { return true; });
    return removed;
}

}  // namespace sapwood::jit
