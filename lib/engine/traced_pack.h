// SPDX-License-Identifier: Apache-2.0
// Calls over packs in a trace: shapes, and how large, how dense and in how many pieces the packs were. Nothing of a pack token by
// token, so that what is enough for `warm` is all there is: such a pack cannot be made again.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "sapwood/packed.h"

namespace sapwood {

struct TracedPack {
    PackedProblem problem;
    bool backward = false, deterministic = false;                    // the latter of a backward pass
    PackedConfig config;                                             // that served
    std::string target;                                              // "sm_90a"
    std::vector<std::string> keys;                                   // the kernels that served
    std::int64_t rows = 0, tokens = 0, visible_pairs = 0, runs = 0;  // of Q, of K and V, of one head, of keys seen alike
    std::uint64_t planned = 0, launched = 0;
};

/// Of a trace file, as it lists them; its other records are read_trace's. Throws kIo naming file and line.
std::vector<TracedPack> read_traced_packs(const std::filesystem::path& path);
/// Its line of a trace file.
std::string trace_line(const TracedPack& record);

}  // namespace sapwood
