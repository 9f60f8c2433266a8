// SPDX-License-Identifier: Apache-2.0
// Atomic publish of a file: readers see the old one, the new one or none, never a part. No failure is an exception.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <span>
#include <string>

namespace sapwood {

struct PublishOptions {
    bool sync = false;          // fdatasync before the rename, so that a power cut leaves no torn entry
    unsigned file_mode = 0600;  // masked by umask, as are directories
    unsigned dir_mode = 0700;   // of directories that have to be made
};

/// What became of it. `error` is an errno; what to do about ENOSPC, EDQUOT, EROFS, EACCES is the caller's choice.
struct [[nodiscard]] PublishResult {
    int error = 0;
    const char* step = "";       // "mkdir", "create", "write", "sync", "rename"
    std::filesystem::path path;  // what the step was done to
    explicit operator bool() const { return error == 0; }
    std::string text() const;  // "cannot write /x/v1/tmp/12-ab-34: No space left on device (errno 28)"
};

/// Writes `bytes` to a fresh file in <root>/v1/tmp and renames it to `target`, which must be on the same filesystem. Missing
/// directories are made. On failure nothing is left behind and `target` is as it was.
PublishResult publish_file(const std::filesystem::path& root, const std::filesystem::path& target, std::span<const std::byte> bytes,
                           const PublishOptions& options = {});

/// The same for a file that a person named: the fresh file lies beside `target`, and directories are not made.
PublishResult replace_file(const std::filesystem::path& target, std::span<const std::byte> bytes,
                           const PublishOptions& options = {.file_mode = 0644});

/// mkdir -p; returns 0 or an errno. An existing directory is success.
int make_directories(const std::filesystem::path& path, unsigned mode);

/// Removes what killed processes left in <root>/v1/tmp, if older than `age`. Returns how many files.
std::uint64_t sweep_temporaries(const std::filesystem::path& root, std::chrono::seconds age);

/// "No space left on device (errno 28)", thread-safe.
std::string errno_text(int error);

}  // namespace sapwood
