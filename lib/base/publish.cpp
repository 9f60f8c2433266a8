// SPDX-License-Identifier: Apache-2.0
#include "base/publish.h"

#include <fcntl.h>
#include <sys/random.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstdio>
#include <ctime>
#include <system_error>

namespace sapwood {
namespace fs = std::filesystem;
namespace {

/// <pid>-<boot>-<rand>: the boot id tells machines on a shared filesystem apart, the rest makes a collision a matter of luck that
/// O_EXCL would catch anyway.
std::string temporary_name() {
    char boot[9] = "0";
    if (const int fd = ::open("/proc/sys/kernel/random/boot_id", O_RDONLY | O_CLOEXEC); fd >= 0) {
        if (::read(fd, boot, 8) != 8) boot[0] = '\0';
        ::close(fd);
    }
    static std::atomic<std::uint32_t> counter{0};
    std::uint64_t random = 0;
    if (::getrandom(&random, sizeof random, GRND_NONBLOCK) != sizeof random) random = static_cast<std::uint64_t>(std::clock());
    char name[64];
    std::snprintf(name, sizeof name, "%ld-%s-%016llx%x", static_cast<long>(::getpid()), boot,
                  static_cast<unsigned long long>(random), counter.fetch_add(1, std::memory_order_relaxed));
    return name;
}

/// Past this limit a write does not fail: it raises SIGXFSZ, which kills the host process. So look before writing.
bool exceeds_file_size_limit(std::size_t bytes) {
    rlimit limit{};
    return ::getrlimit(RLIMIT_FSIZE, &limit) == 0 && limit.rlim_cur != RLIM_INFINITY && bytes > limit.rlim_cur;
}

int write_all(int fd, std::span<const std::byte> bytes) {
    while (!bytes.empty()) {
        const ssize_t written = ::write(fd, bytes.data(), std::min<std::size_t>(bytes.size(), 1u << 30));
        if (written < 0 && errno == EINTR) continue;
        if (written < 0) return errno;
        if (written == 0) return ENOSPC;
        bytes = bytes.subspan(static_cast<std::size_t>(written));
    }
    return 0;
}

PublishResult fill(int fd, const fs::path& temporary, std::span<const std::byte> bytes, bool sync) {
    PublishResult result{0, "write", temporary};
    result.error = exceeds_file_size_limit(bytes.size()) ? EFBIG : write_all(fd, bytes);
    if (result.error == 0 && sync && ::fdatasync(fd) != 0 && errno != EINVAL) result = {errno, "sync", temporary};
    // NFS and quota filesystems report a failed write here. EINTR: Linux has closed it.
    if (::close(fd) != 0 && result.error == 0 && errno != EINTR) result.error = errno;
    return result;
}

PublishResult write_and_rename(const fs::path& temporary, const fs::path& target, std::span<const std::byte> bytes,
                               const PublishOptions& options) {
    const int fd = ::open(temporary.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, options.file_mode);
    if (fd < 0) return {errno, "create", temporary};
    PublishResult result = fill(fd, temporary, bytes, options.sync);
    if (result.error == 0 && ::rename(temporary.c_str(), target.c_str()) != 0) result = {errno, "rename", target};
    if (result.error != 0) ::unlink(temporary.c_str());
    return result;
}

}  // namespace

std::string errno_text(int error) { return std::generic_category().message(error) + " (errno " + std::to_string(error) + ")"; }

std::string PublishResult::text() const {
    return error == 0 ? std::string() : std::string("cannot ") + step + " " + path.string() + ": " + errno_text(error);
}

int make_directories(const fs::path& path, unsigned mode) {
    struct stat info {};
    if (::stat(path.c_str(), &info) == 0) return S_ISDIR(info.st_mode) ? 0 : ENOTDIR;
    if (::mkdir(path.c_str(), mode) == 0 || errno == EEXIST) return 0;  // EEXIST: another process was faster
    if (errno != ENOENT) return errno;
    const fs::path parent = path.parent_path();
    if (parent.empty() || parent == path) return ENOENT;
    if (const int error = make_directories(parent, mode); error != 0) return error;
    return ::mkdir(path.c_str(), mode) == 0 || errno == EEXIST ? 0 : errno;
}

PublishResult publish_file(const fs::path& root, const fs::path& target, std::span<const std::byte> bytes,
                           const PublishOptions& options) {
    const fs::path tmp = root / "v1" / "tmp";
    for (const fs::path& directory : {tmp, target.parent_path()}) {
        if (const int error = make_directories(directory, options.dir_mode); error != 0) return {error, "mkdir", directory};
    }
    return write_and_rename(tmp / temporary_name(), target, bytes, options);
}

PublishResult replace_file(const fs::path& target, std::span<const std::byte> bytes, const PublishOptions& options) {
    fs::path temporary = target;
    temporary += ".tmp-" + temporary_name();
    return write_and_rename(temporary, target, bytes, options);
}

std::uint64_t sweep_temporaries(const fs::path& root, std::chrono::seconds age) {
    std::uint64_t removed = 0;
    const std::time_t limit = std::time(nullptr) - age.count();
    std::error_code error;
    for (fs::directory_iterator it(root / "v1" / "tmp", error), end; !error && it != end; it.increment(error)) {
        struct stat info {};
        const fs::path& path = it->path();
        if (::lstat(path.c_str(), &info) != 0 || S_ISDIR(info.st_mode) || info.st_mtime >= limit) continue;
        if (::unlink(path.c_str()) == 0) ++removed;
    }
    return removed;
}

}  // namespace sapwood
