// SPDX-License-Identifier: Apache-2.0
// Which kernels a server will need, from a description of its models and limits or from a trace: the planner is run over the grid
// of shapes, and whatever kernel it chooses anywhere is on the list. Keys, not sample shapes, are what has to be warm.
#pragma once

#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <vector>

#include "engine/trace.h"
#include "engine/traced_pack.h"
#include "sapwood/engine.h"

namespace sapwood {

/// How the requests of a batch share their context.
enum class Sharing { none, prefix, tree };

/// Packs of a trainer: sequences of `segments` tokens each that fill `tokens` tokens, every combination of the two.
struct PackGrid {
    std::vector<std::int64_t> tokens, segments;
    bool forward = true, backward = true;
};

struct EngineConfig {
    std::string name;
    std::vector<std::string> targets;             // "sm_90a", "host"
    std::vector<DecodeProblem> problems;          // models x tensor parallelism x dtypes x page sizes x scores, distinct
    std::vector<std::int64_t> batches, contexts;  // powers of two between the limits, and the limits
    std::vector<Sharing> sharing;
    std::vector<DecodeConfig> configs;  // {}: the planner's choice; others besides, e.g. to stand in
    std::int64_t max_tokens = 0;        // of the KV pool: larger combinations of batch and context do not occur; 0 = no limit
    std::vector<PackedProblem> packed_problems;  // models x tensor parallelism x dtypes, distinct; none without "packs"
    PackGrid packs;
};

/// Reads a file such as tools/examples/llama.json. Throws kIo naming file and field; a field that is not known is an error.
EngineConfig read_engine_config(const std::filesystem::path& path);

struct KeyList {
    std::vector<std::string> keys;    // distinct, in order
    std::vector<std::string> faults;  // problems that have no kernel on this target, with the reason
    std::uint64_t plans = 0;          // made to find them

    void sort_out();  // to distinct ones in order
    void add(const KeyList& other);
};

/// The kernels that the planner of `engine` chooses for a configuration, or for the problems of a trace (and those it recorded for
/// the same target).
KeyList keys_of(Engine& engine, const EngineConfig& config);
KeyList keys_of(Engine& engine, std::span<const TraceProblem> trace);
KeyList keys_of(Engine& engine, std::span<const TracedPack> trace);
/// Of its packs alone; keys_of(EngineConfig) has these too.
KeyList packed_keys_of(Engine& engine, const EngineConfig& config);

}  // namespace sapwood
