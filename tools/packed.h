// SPDX-License-Identifier: Apache-2.0
// `run` and `bench` on training workloads: cases over packs.
#pragma once

#include <string>

#include "common.h"

namespace sapwood::tool {

struct PackedRunOptions {
    std::string target, cache, config, backward_config;
    bool check = false;
    std::int32_t check_rows = 0;  // 0: 64
    double host_work = 0;         // host target: skip cases of more FLOP
    double budget = 2;            // bench: seconds of GPU time a case and pass
    std::string passes = "fwd,bwd";
    bool arrays = false;  // bench: trees as start_q and end_k on the device
};

/// Both return an exit code.
int run_packed(const Selection& cases, JsonLines& json, const PackedRunOptions& options);
int bench_packed(const Selection& cases, JsonLines& json, const PackedRunOptions& options);

}  // namespace sapwood::tool
