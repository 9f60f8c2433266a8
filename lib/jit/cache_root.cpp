// SPDX-License-Identifier: Apache-2.0
#include "jit/cache_root.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <system_error>

#include "base/env.h"
#include "base/publish.h"

namespace sapwood::jit {
namespace fs = std::filesystem;
namespace {

/// Empty when there is no place to look.
fs::path search() {
    if (const auto dir = env::get("SAPWOOD_CACHE_DIR")) return *dir;
    // The XDG specification: a relative path is invalid and has to be ignored.
    if (const auto dir = env::get("XDG_CACHE_HOME"); dir && fs::path(*dir).is_absolute()) return fs::path(*dir) / "sapwood";
    if (const auto dir = env::get("HOME"); dir && fs::path(*dir).is_absolute()) return fs::path(*dir) / ".cache" / "sapwood";
    return {};
}

/// Absolute, so that a later chdir changes nothing, and without a trailing slash, behind which lstat would follow a link.
fs::path normal(const fs::path& path) {
    std::error_code error;
    fs::path absolute = fs::absolute(path, error).lexically_normal();
    if (error) return {};
    return absolute.has_filename() ? absolute : absolute.parent_path();
}

std::string octal(unsigned mode) {
    char text[16];
    std::snprintf(text, sizeof text, "%04o", mode & 07777);
    return text;
}

/// Why the directory must not be used, or empty.
std::string insecurity(const fs::path& path, const struct stat& info, bool trusted) {
    const std::string subject = "cache dir " + path.string();
    if (S_ISLNK(info.st_mode)) return subject + " is a symbolic link; ignored. Name its target in SAPWOOD_CACHE_DIR";
    if (!S_ISDIR(info.st_mode)) return subject + " is not a directory; ignored. Set SAPWOOD_CACHE_DIR";
    if (trusted) return {};
    if (info.st_uid != ::geteuid())
        return subject + " is owned by uid " + std::to_string(info.st_uid) + ", not by " + std::to_string(::geteuid()) +
               "; ignored. Set SAPWOOD_CACHE_DIR, or SAPWOOD_CACHE_TRUST=1 to run kernels from it";
    if ((info.st_mode & (S_IWGRP | S_IWOTH)) != 0)
        return subject + " is writable by others (mode " + octal(info.st_mode) + "); ignored. chmod 700 or set SAPWOOD_CACHE_DIR";
    return {};
}

/// Filesystems served by another machine or process, where a lock may be missing, ignored or endless.
bool is_local(const fs::path& path) {
    struct statfs info {};
    if (::statfs(path.c_str(), &info) != 0) return false;
    switch (static_cast<std::uint32_t>(info.f_type)) {
        case 0x6969:      // NFS
        case 0x517b:      // SMB
        case 0xff534d42:  // CIFS
        case 0xfe534d42:  // SMB2
        case 0x65735546:  // FUSE
        case 0x0bd00bd0:  // Lustre
        case 0x00c36400:  // Ceph
        case 0x47504653:  // GPFS
        case 0x19830326:  // BeeGFS
        case 0x01021997:  // 9p
        case 0x5346414f:  // AFS
        case 0x6b414653:  // kAFS
        case 0x73757245:  // Coda
        case 0x01161970:  // GFS2
        case 0x7461636f:  // OCFS2
        case 0xaad7aaea:  // PanFS
            return false;
        default:
            return true;
    }
}

/// Tells backup tools to skip the directory (https://bford.info/cachedir/).
void write_tag(const fs::path& path, unsigned mode) {
    constexpr std::string_view kText =
        "Signature: 8a477f597d28d172789f06886806bc55\n# Kernels compiled by Sapwood. Safe to delete: they are compiled again when "
        "needed.\n";
    const int fd = ::open((path / "CACHEDIR.TAG").c_str(), O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, mode);
    if (fd < 0) return;  // there already, or read-only: nothing depends on it
    [[maybe_unused]] const ssize_t written = ::write(fd, kText.data(), kText.size());
    ::close(fd);
}

CacheRoot memory_only(std::string reason, std::string_view cause) {
    CacheRoot root;
    root.reason = std::move(reason);
    root.cause = cause;
    return root;
}

}  // namespace

CacheRoot open_cache_root(const std::optional<fs::path>& asked) {
    if (!asked) return memory_only("the disk cache was disabled by the caller", {});
    if (!env::flag("SAPWOOD_DISK_CACHE")) return memory_only("SAPWOOD_DISK_CACHE=0", {});
    CacheRoot root;
    root.path = normal(asked->empty() ? search() : *asked);
    if (root.path.empty())
        return memory_only(
            "no directory for the kernel cache: neither HOME nor XDG_CACHE_HOME is set; kernels are kept in memory only. "
            "Set SAPWOOD_CACHE_DIR",
            "cache-no-directory");
    root.trusted = env::flag("SAPWOOD_CACHE_TRUST");

    struct stat info {};
    if (::lstat(root.path.c_str(), &info) != 0) {
        // Parents are ordinary directories, e.g. ~/.cache; the root itself is private from its first moment.
        int error = errno == ENOENT ? make_directories(root.path.parent_path(), 0755) : errno;
        if (error == 0 && ::mkdir(root.path.c_str(), root.dir_mode()) != 0 && errno != EEXIST) error = errno;
        if (error == 0 && ::lstat(root.path.c_str(), &info) != 0) error = errno;
        if (error != 0)
            return memory_only("cannot make cache dir " + root.path.string() + ": " + errno_text(error) +
                                   "; kernels are kept in memory only. Set SAPWOOD_CACHE_DIR",
                               "cache-unwritable");
    }
    if (std::string reason = insecurity(root.path, info, root.trusted); !reason.empty())
        return memory_only(std::move(reason), "cache-insecure");
    root.local = is_local(root.path);
    write_tag(root.path, root.file_mode());
    return root;
}

}  // namespace sapwood::jit
