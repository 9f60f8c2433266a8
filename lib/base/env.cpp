// SPDX-License-Identifier: Apache-2.0
#include "base/env.h"

#include <cstdlib>
#include <string_view>

#include "base/error.h"

namespace sapwood::env {
namespace {

constexpr Variable kVariables[] = {
    {"SAPWOOD_BUNDLE_PATH", "path:path…", "Bundles of kernels (`sapwood pack`) to look into before the cache, in this order.", ""},
    {"SAPWOOD_CACHE_DIR", "path", "Directory of the kernel cache; made with mode 0700.",
     "$XDG_CACHE_HOME/sapwood, else $HOME/.cache/sapwood"},
    {"SAPWOOD_CACHE_TRUST", "0|1", "Accept a cache directory that others own or may write to; its contents are executed.", "0"},
    {"SAPWOOD_CACHE_FSYNC", "0|1", "Flush an entry to the device before it is published (local filesystems only).", "1"},
    {"SAPWOOD_DISK_CACHE", "0|1", "0: neither read nor write kernels on disk, whatever directory is given.", "1"},
    {"SAPWOOD_KERNEL_DIR", "path", "Read kernel templates from this directory instead of the embedded ones (development).", ""},
    {"SAPWOOD_LOG", "debug|info|warning|error|off", "Least severe message that goes to standard error.", "warning"},
    {"SAPWOOD_TUNE", "off|read",
     "off: configurations that a caller leaves open come from the planner, not from the tuning database.", "read"},
    {"SAPWOOD_TUNE_DIR", "path", "Tuning database to read; shipped records come after it.", "v1/tune in the cache directory"},
    {"SAPWOOD_NVRTC", "path", "libnvrtc to load instead of searching for one.", ""},
    {"SAPWOOD_TRACE", "path", "Record every distinct problem in this file (%p: process id); `warm` and `tune` read it.", ""},
};

constexpr std::string_view kForeign[] = {"HOME", "XDG_CACHE_HOME", "CUDA_HOME", "CUDA_PATH", "CXX", "PATH"};

const Variable* find(std::string_view name) {
    for (const Variable& variable : kVariables) {
        if (name == variable.name) return &variable;
    }
    return nullptr;
}

bool listed(std::string_view name) {
    if (find(name) != nullptr) return true;
    for (const std::string_view foreign : kForeign) {
        if (name == foreign) return true;
    }
    return false;
}

}  // namespace

std::span<const Variable> variables() { return kVariables; }

std::optional<std::string> get(const char* name) {
    if (!listed(name))
        raise(ErrorCode::kInternal, "environment variable " + std::string(name) + " is not listed in lib/base/env.cpp");
    // secure_getenv: in a set-user-id process the caller's environment must choose neither the compiler nor the cache.
    const char* value = secure_getenv(name);
    if (value == nullptr || *value == '\0') return std::nullopt;
    return value;
}

bool flag(const char* name) {
    const Variable* variable = find(name);
    const std::string value = get(name).value_or(variable != nullptr ? variable->fallback : "");
    return !(value.empty() || value == "0" || value == "off" || value == "no" || value == "false");
}

}  // namespace sapwood::env
