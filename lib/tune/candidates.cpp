// SPDX-License-Identifier: Apache-2.0
#include "tune/candidates.h"

#include <algorithm>

#include "base/error.h"
#include "plan/tiles.h"
#include "tune/config_fields.h"
#include "tune/cost.h"
#include "tune/prune.h"
#include "tune/same_plan.h"

namespace sapwood::tune {
namespace {

/// Same bytes, same work: FNV-1a over the lists.
/// Fields left open filled in as the planner would; false and a reason if nothing fits them.
bool resolve(const DecodeProblem& problem, const DeviceFacts& device, TuneCandidate& candidate) {
    try {
        candidate.config = choose_config(problem, candidate.config, device.limits);
        return true;
    } catch (const Error& error) {
        candidate.reason = error.what();
        if (candidate.config.stages == 0) candidate.config.stages = 3;  // the least that was tried: its figures say why
        return false;
    }
}

}  // namespace

std::vector<std::size_t> CandidateSet::alive() const {
    std::vector<std::size_t> indices;
    for (std::size_t i = 0; i < all.size(); ++i)
        if (all[i].status == "ok") indices.push_back(i);
    return indices;
}

CandidateSet find_candidates(const DecodeProblem& problem, const Forest& forest, const ForestOrder& order,
                             const DeviceFacts& device, const TuneOptions& options, std::span<const DecodeConfig> wanted) {
    CandidateSet set;
    set.list = list_for(device.limits.sm);
    std::vector<DecodeConfig> given;
    if (!options.only_added) given = configs_of(*set.list.list);
    given.insert(given.end(), options.add.begin(), options.add.end());
    given.insert(given.end(), wanted.begin(), wanted.end());

    std::vector<TuneCandidate> found;
    const auto known = [&](const DecodeConfig& config) {
        return std::any_of(found.begin(), found.end(), [&](const TuneCandidate& c) { return same_config(c.config, config); });
    };
    for (const DecodeConfig& config : given) {
        TuneCandidate candidate;
        candidate.config = with_fixed(config, options.fix);
        const bool resolved = resolve(problem, device, candidate);
        if (known(candidate.config)) continue;
        if (!resolved) candidate.status = "pruned:shape";
        apply_resource_model(problem, device, candidate);
        found.push_back(std::move(candidate));
    }
    std::stable_sort(found.begin(), found.end(),
                     [order_of_preference = PreferenceOrder(device.limits.sm)](const auto& a, const auto& b) {
                         return order_of_preference(a.config, b.config);
                     });
    // The default is a candidate whatever the caller restricts: everything is compared with it. It comes first, so ties are its.
    const DecodeConfig by_default = choose_config(problem, order, options.fix, device.limits);
    std::erase_if(found, [&](const TuneCandidate& c) { return same_config(c.config, by_default); });
    found.insert(found.begin(), TuneCandidate{.config = by_default});
    apply_resource_model(problem, device, found.front());

    std::vector<std::uint64_t> prints(found.size(), 0);
    for (std::size_t i = 0; i < found.size(); ++i) {
        TuneCandidate& candidate = found[i];
        if (i > 0 && options.restrict_to && !options.restrict_to(candidate.config)) drop(candidate, "pruned:caller", "restrict_to");
        if (candidate.status != "ok") continue;
        const auto plan = make_decode_plan(problem, forest, order, candidate.config, {}, device.limits);
        candidate.items = plan->info.items;
        candidate.partial_rows = plan->info.partial_rows;
        candidate.model_us = plan->info.model_us;
        set.floor_us = static_cast<double>(plan->info.hbm_bytes) / kHbmBytesPerMicrosecond;
        const PlanCost cost = launch_cost(*plan);
        candidate.arithmetic_us = cost.arithmetic_us;
        candidate.cost_us = cost.us;
        if (options.cost) candidate.cost_us = options.cost(candidate);
        prints[i] = fingerprint(plan->list.items, plan->list.requests, plan->list.chunks, plan->list.merges);
        drop_same_plan(found, prints, i);
        if (i == 0 || !options.prune) continue;
        if (std::string reason = options.prune(candidate); !reason.empty()) drop(candidate, "pruned:caller", std::move(reason));
    }
    set.all = std::move(found);

    std::vector<std::size_t> ranked = set.alive();
    std::stable_sort(ranked.begin(), ranked.end(),
                     [&](std::size_t a, std::size_t b) { return set.all[a].cost_us < set.all[b].cost_us; });
    if (options.exhaustive) return set;
    // The model tells plans apart better than kernels: the first of each kernel is measured whatever its place.
    std::vector<std::size_t> kept;
    for (std::size_t place = 0; place < ranked.size(); ++place) {
        TuneCandidate& candidate = set.all[ranked[place]];
        const auto same = [&](const DecodeConfig& config) { return same_config(config, candidate.config); };
        const bool first_of_kernel =
            std::none_of(kept.begin(), kept.end(), [&](std::size_t i) { return same_kernel(set.all[i].config, candidate.config); });
        if (place < static_cast<std::size_t>(std::max(1, options.top_k)) || ranked[place] == 0 || first_of_kernel ||
            std::any_of(wanted.begin(), wanted.end(), same)) {
            kept.push_back(ranked[place]);
        } else {
            drop(candidate, "pruned:rank",
                 "place " + std::to_string(place + 1) + " of " + std::to_string(ranked.size()) + " by cost");
        }
    }
    return set;
}

}  // namespace sapwood::tune
