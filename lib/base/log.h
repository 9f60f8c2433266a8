// SPDX-License-Identifier: Apache-2.0
// Sapwood's own logger. spdlog is named in log.cpp alone; nothing here touches the host application's global registry.
#pragma once

#include <functional>
#include <string>
#include <string_view>

namespace sapwood::log {

enum class Level { debug, info, warning, error };

/// Where messages go: null restores the default (stderr through spdlog, level from SAPWOOD_LOG=debug|info|warning|error|off,
/// default warning). The sink may be called from several threads at once.
using Sink = std::function<void(Level, std::string_view)>;
void set_sink(Sink sink);

/// True when a message of this level would go anywhere: build expensive texts only then.
bool enabled(Level level) noexcept;

void debug(std::string_view text);
void info(std::string_view text);
void warning(std::string_view text);
void error(std::string_view text);

/// A warning given once a process for each distinct `cause` (e.g. "cache-unwritable").
void warning_once(std::string_view cause, std::string_view text);

}  // namespace sapwood::log
