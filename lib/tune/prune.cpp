// SPDX-License-Identifier: Apache-2.0
#include "tune/prune.h"

#include <algorithm>
#include <limits>

#include "plan/tiles.h"
#include "tune/config_fields.h"
#include "tune/same_plan.h"

namespace sapwood::tune {
namespace {

constexpr int kBlocksPerSm = 32;

void rule_out(TuneCandidate& candidate, const char* status, std::string reason) {
    candidate.status = status;
    if (candidate.reason.empty()) candidate.reason = std::move(reason);
}

}  // namespace

int blocks_per_sm(const DeviceFacts& device, int threads, int registers, int shared_bytes) {
    const Limits& limits = device.limits;
    const int warps = std::max(1, (threads + 31) / 32);
    const int of_warp = (std::max(registers, 1) * 32 + 255) / 256 * 256;
    const int warps_by_registers = limits.registers_sm / 4 / of_warp * 4;
    const int by_shared = limits.max_shared_sm / std::max(1, shared_bytes + limits.reserved_shared_block);
    return std::min({warps_by_registers / warps, by_shared, device.max_threads_sm / std::max(1, threads), kBlocksPerSm});
}

void apply_resource_model(const DecodeProblem& problem, const DeviceFacts& device, TuneCandidate& candidate) {
    const DecodeConfig& config = candidate.config;
    const std::string why = why_illegal(problem, config, device.limits);
    // What no device of this SM could run, however large.
    Limits boundless = device.limits;
    boundless.max_shared_block = boundless.max_shared_sm = boundless.registers_sm = 1 << 28;
    const bool impossible = !why.empty() && !why_illegal(problem, config, boundless).empty();
    // Shapes that make no kernel are refused before anything is computed from them.
    if (config.warps < 1 || config.producers < 1 || config.block_kv < 1 || config.stages < 1 || config.blocks < 1)
        return rule_out(candidate, "pruned:shape", why);
    const abi::DecodeShape shape = shape_of(problem, config);
    const RegisterEstimate registers = register_estimate(problem, config, device.limits);
    candidate.shared_bytes = static_cast<int>(abi::decode_shared_bytes(shape));
    candidate.threads = (config.warps + config.producers) * 32;
    candidate.registers = registers.needed;
    candidate.registers_available = registers.available;
    candidate.blocks_per_sm =
        blocks_per_sm(device, candidate.threads, std::min(registers.needed, registers.available), candidate.shared_bytes);
    if (why.empty()) return;
    if (impossible) return rule_out(candidate, "pruned:shape", why);
    if (candidate.shared_bytes > device.limits.max_shared_block) return rule_out(candidate, "pruned:smem", why);
    if ((candidate.shared_bytes + device.limits.reserved_shared_block) * config.blocks > device.limits.max_shared_sm)
        return rule_out(candidate, "pruned:occupancy", why);
    if (registers.needed > registers.available) return rule_out(candidate, "pruned:registers", why);
    rule_out(candidate, "pruned:shape", why);
}

void apply_compiled(const DeviceFacts& device, int registers, int spill_bytes, TuneCandidate& candidate) {
    candidate.compiled = true;
    candidate.registers = registers;
    candidate.spill_bytes = spill_bytes;
    candidate.blocks_per_sm = blocks_per_sm(device, candidate.threads, registers, candidate.shared_bytes);
    if (candidate.blocks_per_sm < candidate.config.blocks)
        rule_out(candidate, "pruned:occupancy",
                 "compiled to " + std::to_string(registers) + " registers a thread: " + std::to_string(candidate.blocks_per_sm) +
                     " blocks an SM where " + std::to_string(candidate.config.blocks) + " are planned");
}

void drop(TuneCandidate& candidate, const char* status, std::string reason) {
    if (candidate.status != "ok") return;
    candidate.status = status;
    candidate.reason = std::move(reason);
}

void drop_same_plan(std::span<TuneCandidate> candidates, std::span<const std::uint64_t> prints, std::size_t which) {
    TuneCandidate& candidate = candidates[which];
    for (std::size_t i = 0; i < which; ++i) {
        TuneCandidate& earlier = candidates[i];
        if (prints[i] != prints[which] || earlier.status != "ok" || !same_kernel(earlier.config, candidate.config)) continue;
        drop(candidate, "pruned:same-plan", "plans the same work items as " + config_text(earlier.config));
        earlier.same.push_back(candidate.config);
        return;
    }
}

std::size_t least_cost(std::span<const TuneCandidate> candidates) {
    std::size_t best = 0;
    double least = std::numeric_limits<double>::infinity();
    for (std::size_t i = 0; i < candidates.size(); ++i) {
        const TuneCandidate& c = candidates[i];
        if (c.status.starts_with("pruned:") || c.status == "build-failed" || c.cost_us >= least) continue;
        best = i, least = c.cost_us;
    }
    return best;
}

void drop_spilling(std::span<TuneCandidate> candidates, int tolerated) {
    const auto alive = [](const TuneCandidate& c) { return c.status == "ok" && c.compiled; };
    const bool any_clean = std::any_of(candidates.begin(), candidates.end(),
                                       [&](const TuneCandidate& c) { return alive(c) && c.spill_bytes <= tolerated; });
    for (TuneCandidate& candidate : candidates)
        if (any_clean && alive(candidate) && candidate.spill_bytes > tolerated)
            rule_out(candidate, "pruned:spill",
                     std::to_string(candidate.spill_bytes) + " bytes a thread spilled at " + std::to_string(candidate.registers) +
                         " registers, where other candidates spill " +
                         (tolerated == 0 ? "none" : "at most " + std::to_string(tolerated)));
}

}  // namespace sapwood::tune
