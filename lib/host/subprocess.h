// SPDX-License-Identifier: Apache-2.0
// One child process with an argument vector, its output captured, and a deadline.
#pragma once

#include <chrono>
#include <filesystem>
#include <string>
#include <vector>

namespace sapwood::host {

struct ProcessResult {
    int exit_code = -1;      // 128 + n when killed by signal n
    bool timed_out = false;  // killed together with its own children
    std::string output;      // stdout and stderr as they came, the first 256 KiB
    std::string failure;     // why it did not even start; empty if it did
};

/// Runs `argv` (argv[0] is a path, nothing is searched) in `directory`. The child sees this process's environment without what
/// would change the meaning of a compilation or of its messages (CPATH, LD_PRELOAD, LC_ALL, ...); its TMPDIR is `directory`.
ProcessResult run_process(const std::vector<std::string>& argv, const std::filesystem::path& directory,
                          std::chrono::milliseconds deadline);

/// A fresh directory of this process's own, removed with all that is in it.
class TemporaryDirectory {
public:
    TemporaryDirectory();  // throws Error{kIo}
    ~TemporaryDirectory();
    TemporaryDirectory(const TemporaryDirectory&) = delete;
    TemporaryDirectory& operator=(const TemporaryDirectory&) = delete;
    const std::filesystem::path& path() const noexcept { return path_; }

private:
    std::filesystem::path path_;
};

}  // namespace sapwood::host
