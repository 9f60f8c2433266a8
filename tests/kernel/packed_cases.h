// SPDX-License-Identifier: Apache-2.0
// Packs small enough for the host target, with their tensors, on the targets that the decode tests use.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "kernel/decode_cases.h"
#include "oracle/packed_oracle.h"
#include "sapwood/packed.h"

namespace sapwood::test {

struct PackedCase {
    const char* name = "";
    PackedProblem problem;
    std::vector<Segment> segments;         // a tree pack …
    std::vector<std::int32_t> cu_q, cu_k;  // … or sequences
    PackedMask mask;
    PackedConfig config;
    bool padded = false;  // gaps behind heads and tokens
    bool lse = true;
    std::vector<std::int32_t> start_q{}, end_k{};  // of a mask with dfs_arrays

    Pack pack() const;
    oracle::Sees sees() const;
};
const std::vector<PackedCase>& packed_cases();
/// Where heads of a group share blocks of rows.
const std::vector<PackedCase>& shared_heads_cases();
/// For the backward pass by mma.sync, whose tiles `config` fixes: every block size and number of stages, with every head dim that
/// some SM has them for.
const std::vector<PackedCase>& backward_tile_cases();

/// Host memory of a case. Gaps are NaN, out and lse poisoned.
class PackedScene {
public:
    explicit PackedScene(const PackedCase& which);
    PackedCase which;
    Pack pack;
    PackedTensors tensors;
    std::vector<std::uint16_t> q, k, v, out;
    std::vector<float> lse;

    void poison();
    /// Plans, launches on the target's device (or here) and brings the result back.
    PackedPlanInfo run(const Target& target);
    /// What is wrong with out and lse, judged by the fp64 oracle; empty: nothing.
    std::string fault() const;
};

/// Launches with the scene's tensors as `change` leaves them; what the refusal says, which is to be of an invalid argument. Empty:
/// none.
std::string refusal(Engine& engine, PackedPlan& plan, const PackedScene& scene, const std::function<void(PackedTensors&)>& change);

/// Runs the case and checks its result.
PackedPlanInfo check_forward(const Target& target, const PackedCase& which);

}  // namespace sapwood::test
