// SPDX-License-Identifier: Apache-2.0
#include "jit/process_lock.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>

namespace sapwood::jit {
namespace {

/// Open-file-description locks: unlike fcntl's older ones they also hold between threads, and closing another descriptor of the
/// same file does not drop them.
int set_lock(int fd, short type, std::int64_t offset) {
    struct flock lock {};
    lock.l_type = type;
    lock.l_whence = SEEK_SET;
    lock.l_start = offset;
    lock.l_len = 1;
    return ::fcntl(fd, F_OFD_SETLK, &lock) == 0 ? 0 : errno;
}

}  // namespace

ProcessLock::ProcessLock(const std::filesystem::path& file, std::int64_t offset, unsigned mode)
    : fd_(::open(file.c_str(), O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, mode)), offset_(offset) {}

ProcessLock::~ProcessLock() {
    release();
    if (fd_ >= 0) ::close(fd_);
}

ProcessLock::Attempt ProcessLock::try_acquire() {
    if (fd_ < 0) return Attempt::unavailable;
    const int error = set_lock(fd_, F_WRLCK, offset_);
    held_ = error == 0;
    if (held_) return Attempt::acquired;
    // ENOLCK, EINVAL, ESTALE, EDEADLK, ...: this filesystem will not give one.
    return error == EAGAIN || error == EACCES ? Attempt::busy : Attempt::unavailable;
}

void ProcessLock::release() {
    // Explicitly, not by close: a child forked meanwhile shares the description and would keep the lock.
    if (held_) set_lock(fd_, F_UNLCK, offset_);
    held_ = false;
}

}  // namespace sapwood::jit
