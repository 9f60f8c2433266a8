// SPDX-License-Identifier: Apache-2.0
// Runs grids of a loaded host kernel: blocks over OS threads, in ticket order.
#pragma once

#include <cstddef>
#include <string>

#include "host/host.h"
#include "isa/host_runtime.h"
#include "jit/loaded_kernel.h"

namespace sapwood::host {

/// Runs the whole grid and returns, or throws: Error{kInvalidArgument} for a shape that the entry cannot run, Error{kInternal} for
/// what a block did wrong. Thread-safe. `name` is for messages.
void execute(const kernel::HostEntry& entry, const std::string& name, const ExecutorOptions& options, const jit::LaunchShape& shape,
             const void* params, std::size_t params_bytes);

}  // namespace sapwood::host
