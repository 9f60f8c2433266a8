// SPDX-License-Identifier: Apache-2.0
// Listing and removal. Safe beside processes that read or publish: they hold open descriptors, or miss and compile.
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
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

bool parse_digest(const std::string& hex, Digest& digest) {
    const auto value = [](char c) { return c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1; };
    if (hex.size() != 2 * digest.size()) return false;
    for (std::size_t i = 0; i < digest.size(); ++i) {
        const int high = value(hex[2 * i]), low = value(hex[2 * i + 1]);
        if (high < 0 || low < 0) return false;
        digest[i] = static_cast<std::uint8_t>(high << 4 | low);
    }
    return true;
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
        Digest digest;
        if (info.fault.empty() && !parse_digest(info.digest, digest)) info.fault = "its name is not a digest";
        if (!info.fault.empty()) continue;
        const auto artifact = verify ? decode_entry(entry.bytes, &digest, &info.fault) : decode_metadata(entry.bytes, &info.fault);
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

std::uint64_t ObjectStore::collect(std::uint64_t max_bytes) const {
    if (!readable()) return 0;
    std::vector<EntryFile> files = entry_files(root_.path);
    std::sort(files.begin(), files.end(), [](const EntryFile& a, const EntryFile& b) { return a.mtime < b.mtime; });
    std::uint64_t total = 0, removed = 0;
    for (const EntryFile& file : files) total += file.bytes;
    for (const EntryFile& file : files) {
        if (total - removed <= max_bytes) break;
        if (remove_entry(file.path)) removed += file.bytes;
    }
    if (removed == 0) return 0;
    remove_references(root_.path, [&](const fs::path& path) {
        Digest source;
        if (!parse_digest(path.parent_path().filename().string() + path.stem().string(), source)) return true;
        const auto entry = decode_reference(read_entry_file(path).bytes, source);
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
