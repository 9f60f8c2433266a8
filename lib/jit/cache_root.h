// SPDX-License-Identifier: Apache-2.0
// Private to jit: which directory the kernel cache lives in, and whether it can be trusted. A cache is code that will be executed.
#pragma once

#include <filesystem>
#include <optional>
#include <string>
#include <string_view>

namespace sapwood::jit {

struct CacheRoot {
    std::filesystem::path path;  // absolute; empty: memory only
    std::string reason;          // why it is empty
    std::string_view cause;      // of the warning that is due; empty: none, it was asked for
    bool trusted = false;        // SAPWOOD_CACHE_TRUST: shared with other users, so modes are left to umask
    bool local = true;           // false on NFS, FUSE and the like: locks may hang there, so none are taken

    unsigned file_mode() const { return trusted ? 0666 : 0600; }
    unsigned dir_mode() const { return trusted ? 0777 : 0700; }
};

/// Finds, makes and checks the directory; see DiskCache for the order of the search. Never throws for what it finds on disk.
CacheRoot open_cache_root(const std::optional<std::filesystem::path>& asked);

}  // namespace sapwood::jit
