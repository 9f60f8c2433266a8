// SPDX-License-Identifier: Apache-2.0
// One case through plan, prepare, launch and check, on whatever the engine runs on: `run` and `demo` share it.
#pragma once

#include <optional>

#include "common.h"
#include "gpu.h"
#include "support/compare.h"

namespace sapwood::tool {

struct Execution {
    DecodePlanInfo plan;
    KernelReport kernel;
    std::string plan_text;
    double plan_us = 0, prepare_ms = 0;
    bool ran = false;
    double run_us = 0;  // GPU: the second launch, by events; host: the only one, wall time
    std::optional<support::Comparison> comparison;
};

struct ExecuteOptions {
    DecodeConfig config;
    bool check = false;
    std::int32_t check_requests = 0;                              // 0: all where that is quick, else an evenly spread subset
    std::function<void(const char*)> stage = [](const char*) {};  // told what comes next
};

/// By the forest, or by the static trees of a case that has some.
DecodePlan plan_case(Engine& engine, const support::DecodeCase& which, const DecodeConfig& config);

/// `device` null: the host target, or (engine without a device) no launch at all.
Execution execute(Engine& engine, const DevicePtr& device, const support::DecodeCase& which, const ExecuteOptions& options);

/// Compulsory bytes of a call: Q and O once, K and V of every token on some request's path once.
double floor_bytes(const support::DecodeCase& which);
double flops(const support::DecodeCase& which);

/// The requests to check: all up to about four seconds of oracle, else an even spread; `wanted` > 0 overrides.
std::vector<std::int32_t> requests_to_check(const support::DecodeCase& which, std::int32_t wanted);

}  // namespace sapwood::tool
