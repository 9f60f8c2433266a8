// SPDX-License-Identifier: Apache-2.0
// The one place where the two columns meet: which compiler, device and memory a target string means.
#pragma once

#include <memory>
#include <string>

#include "cuda/device.h"
#include "engine/device_memory.h"
#include "jit/compile.h"
#include "plan/limits.h"
#include "sapwood/engine.h"

namespace sapwood {

struct TargetSetup {
    std::string target;  // "sm_90a", "host"
    std::string device_name;
    Limits limits;
    std::unique_ptr<jit::Compiler> compiler;
    std::shared_ptr<cuda::Device> device;  // null on host and for compile-only targets
    std::shared_ptr<Memory> memory;        // null for compile-only targets
    bool is_host = false;
};

/// What planning needs of a device, present or from the table of SMs.
Limits limits_of(const cuda::DeviceInfo& info, const std::string& target);

/// Resolves EngineOptions::target. Throws kUnsupportedDevice saying what there is.
TargetSetup open_target(const EngineOptions& options);

}  // namespace sapwood
