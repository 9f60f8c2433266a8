// SPDX-License-Identifier: Apache-2.0
// Private to jit: a lock between processes that spares duplicate work and is needed for nothing else. It never waits.
#pragma once

#include <cstdint>
#include <filesystem>

namespace sapwood::jit {

/// An exclusive lock on one byte of a file, at any offset, also behind its end. The kernel drops it when its owner dies, so nothing
/// has to be cleaned up; lock files are never unlinked, since that would let two processes lock two files of one name.
class ProcessLock {
public:
    enum class Attempt { acquired, busy, unavailable };

    ProcessLock(const std::filesystem::path& file, std::int64_t offset, unsigned mode);
    ~ProcessLock();
    ProcessLock(const ProcessLock&) = delete;
    ProcessLock& operator=(const ProcessLock&) = delete;

    Attempt try_acquire();
    void release();
    int fd() const { return fd_; }  // -1 if the file cannot be opened

private:
    int fd_;
    std::int64_t offset_;
    bool held_ = false;
};

}  // namespace sapwood::jit
