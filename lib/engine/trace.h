// SPDX-License-Identifier: Apache-2.0
// A recorded trace: the distinct decode problems of a run with how often they came, and forests like theirs. No tensor data. For
// `warm`, `tune` and `bench`.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "sapwood/decode.h"

namespace sapwood {

/// `copies` siblings alike: nodes of this parent (an index into the list, lower than their own, -1 for a root) with this many
/// tokens and requests each. Only what has no children is given as several copies.
struct TraceNode {
    std::int32_t parent = -1;
    std::int64_t tokens = 0;
    std::int32_t requests = 0;
    std::int32_t copies = 1;
};

struct TraceProblem {
    DecodeProblem problem;
    DecodeConfig config;                                     // that the planner chose, or was given
    std::string target, key;                                 // "sm_90a"; the kernel that served
    std::int64_t requests = 0, tokens = 0, path_tokens = 0;  // of the forest below
    std::uint64_t planned = 0, updated = 0, launched = 0;
    std::vector<TraceNode> tree;  // of the first call that fell into this bucket of sizes
    std::int32_t pathless = 0;    // requests that see nothing

    /// A forest like the recorded one, KV positions laid out one node after the other, from page boundaries.
    Forest forest() const;
};

/// The decode records of a trace file, as it lists them; those of packs are in traced_pack.h. Throws kIo naming file and line.
std::vector<TraceProblem> read_trace(const std::filesystem::path& path);
/// The text of a trace file.
std::string write_trace(const std::vector<TraceProblem>& problems, std::uint64_t dropped);

/// The live part of a forest, nodes before their children, equal childless siblings as one.
std::vector<TraceNode> trace_tree(const Forest& forest, std::int32_t* pathless);

/// Sizes that count as alike: the bucket of a count is twice its binary logarithm, rounded.
int trace_bucket(std::int64_t count) noexcept;

}  // namespace sapwood
