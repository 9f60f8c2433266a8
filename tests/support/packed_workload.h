// SPDX-License-Identifier: Apache-2.0
// Reads training workloads (tests/workloads/training.json): packs of trees, and the integers that they must come to.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "oracle/packed_oracle.h"
#include "sapwood/packed.h"

namespace sapwood::support {

/// One case of a file, the lists still open.
struct PackedSpec {
    std::string name, set, note;
    std::uint64_t seed = 1;
    std::vector<Segment> segments;  // of all sequences, one behind the other
    bool block_causal = false;      // a mask that packs cannot say; such cases are read and left out
    std::vector<DType> dtypes;
    std::vector<std::int32_t> head_dims;
    std::vector<std::pair<std::int32_t, std::int32_t>> heads;  // q, kv
    std::optional<std::int64_t> sequences, nodes, unique_tokens, visible_pairs, dup_pairs, max_seqlen;
};

struct PackedVariant {
    DType dtype = DType::bf16;
    std::int32_t head_dim = 128, q_heads = 32, kv_heads = 8;

    std::string to_string() const;  // "bf16 d128 32/8"
    PackedProblem problem() const { return {.q_heads = q_heads, .kv_heads = kv_heads, .head_dim = head_dim, .dtype = dtype}; }
};
std::vector<PackedVariant> variants(const PackedSpec& spec);

/// Whether the file's kind is "training".
bool is_packed_workload(const std::filesystem::path& file);
/// Throws Error{kIo} naming file, case and field. Every case is compared with its own integers; Error{kInternal} if one differs.
std::vector<PackedSpec> load_packed_workload(const std::filesystem::path& file);

/// Causal pairs if every path from root to leaf were a sequence of its own.
std::int64_t repeated_pairs(std::span<const Segment> segments);

}  // namespace sapwood::support
