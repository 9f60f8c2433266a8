// SPDX-License-Identifier: Apache-2.0
#include <array>

#include "plan/backward_plan.h"
#include "plan/backward_tiles.h"
#include "plan/packed_plan.h"
#include "plan/packed_tiles.h"
#include "tune/packed_candidates.h"
#include "tune/same_plan.h"

namespace sapwood::tune {
namespace {

template <class To, class From>
To tiles_of(const From& config) {
    return {.mainloop = config.mainloop,
            .warps = config.warps,
            .producers = config.producers,
            .block_kv = config.block_kv,
            .stages = config.stages,
            .blocks = config.blocks};
}

double flops_of_a_pair(double flops, std::int64_t pairs) { return pairs > 0 ? flops / static_cast<double>(pairs) : 0; }

}  // namespace

DecodeConfig as_decode(const PackedConfig& config) { return tiles_of<DecodeConfig>(config); }
PackedConfig as_packed(const DecodeConfig& config) { return tiles_of<PackedConfig>(config); }

DecodeConfig PackedPass::as_decode(const PackedConfig& config) const {
    DecodeConfig decode = tune::as_decode(config);
    if (family_ == Family::packed_backward && config.heads > 0) decode.split = group() / config.heads;
    return decode;
}

PackedConfig PackedPass::as_packed(const DecodeConfig& config) const {
    PackedConfig packed = tune::as_packed(config);
    if (family_ == Family::packed_backward && config.split > 0) packed.heads = group() / config.split;
    return packed;
}

std::string PackedPass::why_illegal(const DecodeConfig& config, const Limits& limits) const {
    if (family_ == Family::packed_forward) return sapwood::why_illegal(problem_, as_packed(config), limits);
    if (config.split > 0 && group() % config.split != 0)
        return "the " + std::to_string(group()) + " query heads of a KV head do not fall into " + std::to_string(config.split) +
               " equal parts";
    return why_backward_illegal(problem_, as_packed(config), limits);
}

DecodeConfig PackedPass::by_default(const DecodeConfig& fixed, const Limits& limits) const {
    const PackedConfig asked = as_packed(fixed);
    if (family_ == Family::packed_forward) return tune::as_decode(choose_config(problem_, asked, limits));
    return as_decode(choose_backward_config(problem_, asked, limits));
}

std::int64_t PackedPass::shared_bytes(const DecodeConfig& config) const {
    if (family_ == Family::packed_forward) return abi::packed_shared_bytes(shape_of(problem_, as_packed(config)));
    return backward_shared_bytes(problem_, as_packed(config));
}

PackedPass::Work PackedPass::work(const Pack& pack, const DecodeConfig& config, const Limits& limits) const {
    if (family_ == Family::packed_forward) {
        const auto plan = make_packed_plan(problem_, pack, as_packed(config), limits);
        const PackedPlanInfo& info = plan->info;
        const double pair = flops_of_a_pair(info.flops, info.visible_pairs);
        return {.items = info.blocks,
                .flops = info.flops,
                .flops_in_tiles = static_cast<double>(info.tiles) * plan->block_q() * config.block_kv * pair};
    }
    const auto plan = make_backward_plan(problem_, pack, {.config = as_packed(config)}, limits);
    const PackedBackwardInfo& info = plan->info;
    const double pair = flops_of_a_pair(info.flops, info.visible_pairs);
    return {.items = info.blocks,
            .flops = info.flops,
            .flops_in_tiles = static_cast<double>(info.tiles) * abi::kRowTile * config.block_kv * pair,
            .print = fingerprint(plan->list.blocks, std::array{plan->bundles, plan->section_heads})};
}

}  // namespace sapwood::tune
