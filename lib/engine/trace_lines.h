// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <filesystem>
#include <functional>
#include <nlohmann/json_fwd.hpp>

#include "sapwood/types.h"

namespace sapwood {

/// Every record of a trace file; its head is checked. Whatever `take` throws becomes kIo naming file and line.
void read_trace_lines(const std::filesystem::path& path, const std::function<void(const nlohmann::json&)>& take);

/// A record that has this field is of a call over a pack.
inline constexpr const char* kPackField = "pack";

/// Throws kIo for a name that is none.
DType traced_dtype(const nlohmann::json& name);

}  // namespace sapwood
