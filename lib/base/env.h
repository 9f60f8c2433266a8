// SPDX-License-Identifier: Apache-2.0
// The only place that calls getenv. Every variable is listed in variables(), from which the README's table is made.
#pragma once

#include <optional>
#include <span>
#include <string>

namespace sapwood::env {

struct Variable {
    const char* name;      // "SAPWOOD_CACHE_DIR"
    const char* type;      // "path", "0|1", "integer", ...
    const char* meaning;   // one sentence
    const char* fallback;  // text of the default
};

std::span<const Variable> variables();

/// Value of a set, non-empty variable. `name` must be in variables() or one of the foreign ones (HOME, XDG_CACHE_HOME, CUDA_HOME,
/// CUDA_PATH, CXX, PATH).
std::optional<std::string> get(const char* name);
/// False for 0, off, no and false; true for any other value. An unset variable counts as its fallback.
bool flag(const char* name);

}  // namespace sapwood::env
