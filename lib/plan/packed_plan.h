// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>

#include "plan/array_list.h"
#include "plan/limits.h"
#include "plan/packed_list.h"
#include "sapwood/packed.h"

namespace sapwood {

/// Host side of a plan. `device` is what the engine keeps beside it (buffers, the loaded kernel).
struct PackedPlan::Impl {
    PackedProblem problem;
    PackedConfig config;
    Limits limits;
    PackedList list;
    ArrayList arrays;  // of a pack with arrays; the spans of `list` are then made on the device
    PackedPlanInfo info;
    std::int32_t section_heads = 1;  // query heads that are worked on together, in those that share a block
    std::string key;
    std::vector<std::string> keys;  // of all its kernels, in the order in which they run
    std::shared_ptr<void> device;
    std::shared_ptr<std::atomic<std::uint64_t>> launches;  // counted in a trace; null: in none

    int block_q() const { return config.warps * 16; }
    int block_tokens() const { return block_q() / config.heads; }  // query rows of a block, of each of its heads
    int grid() const { return info.grid; }
};

/// KV heads that are worked on together: as many as fit L2, `head_bytes` each, and so many that they have `enough` of the `items`
/// of one head for all multiprocessors to choose from, because the longest-first order evens out within a section only. A divisor
/// of all heads.
std::int32_t choose_section(std::int32_t kv_heads, std::int64_t head_bytes, std::int64_t items, std::int64_t enough);

std::unique_ptr<PackedPlan::Impl> make_packed_plan(const PackedProblem& problem, const Pack& pack, const PackedConfig& config,
                                                   const Limits& limits);

}  // namespace sapwood
