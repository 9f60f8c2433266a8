// SPDX-License-Identifier: Apache-2.0
// `run` and `bench` on training workloads: cases over packs.
#pragma once

#include <string>

#include "common.h"
#include "support/packed_workload.h"

namespace sapwood::tool {

struct PackedRunOptions {
    std::string target, cache, config;
    bool check = false;
    std::int32_t check_rows = 0;  // 0: 64
    double host_work = 0;         // host target: skip cases of more FLOP
    double budget = 2;            // bench: seconds of GPU time a case and pass
    std::string passes = "fwd,bwd";
};

struct PackedItem {
    support::PackedSpec spec;
    support::PackedVariant variant;
    std::string title() const { return spec.name + " " + variant.to_string(); }
};
/// The cases of a training workload that are selected; throws Stop if there are none.
std::vector<PackedItem> packed_items(const Selection& cases);

/// Both return an exit code.
int run_packed(const Selection& cases, JsonLines& json, const PackedRunOptions& options);
int bench_packed(const Selection& cases, JsonLines& json, const PackedRunOptions& options);

}  // namespace sapwood::tool
