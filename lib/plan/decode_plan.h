// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <memory>
#include <string>

#include "plan/limits.h"
#include "plan/work_list.h"
#include "sapwood/decode.h"

namespace sapwood {

/// Takes part in a plan's updates for the engine that made it. May call the plan's own update(), or plan anew.
class PlanHook {
public:
    virtual ~PlanHook() = default;
    virtual void update(DecodePlan::Impl& plan, const Forest& forest) = 0;
};

/// Host side of a plan. `device` is what the engine keeps beside it (buffers, the loaded kernel); the planner never looks inside.
struct DecodePlan::Impl {
    DecodeProblem problem;
    DecodeConfig config;
    Limits limits;
    WorkCounts capacity;
    WorkList list;
    bool fixed = false;  // of a static tree: there is no forest to update from
    bool masks_on_device = false;
    std::int32_t mask_columns = 0;  // of the longest draft with a mask
    DecodePlanInfo info;
    TuneMatch tuned = TuneMatch::none;  // where `config` comes from
    std::string key;

    std::uint64_t forest_identity = 0, forest_structure = 0;
    std::size_t journal = 0;        // growth entries of the forest taken over so far
    std::uint64_t revision = 0;     // of the whole list; patches are in list.changed_*
    std::int32_t grown_tokens = 0;  // patched since the last full plan

    std::shared_ptr<void> device;
    std::shared_ptr<PlanHook> hook;  // null: nothing to do at an update but to update

    /// Plans `forest`. With `asked` the capacity is set from it; without, the list must fit the capacity there is, else
    /// kCapacityExceeded is thrown and nothing has changed.
    void plan(const Forest& forest, const ForestOrder& order, const DecodeLimits* asked);
    void update(const Forest& forest);
    SplitInput split_input() const;
    int grid() const { return limits.sms * config.blocks; }
};

/// complete() (plan/tiles.h), with what the forest asks of the kernel.
DecodeProblem complete(const DecodeProblem& asked, const ForestOrder& order);

/// The configuration for this forest: choose_config (plan/tiles.h), and the main loop that suits how its rows share keys.
DecodeConfig choose_config(const DecodeProblem& problem, const ForestOrder& order, const DecodeConfig& asked, const Limits& limits);

/// A complete plan, configuration chosen where `config` leaves it open.
std::unique_ptr<DecodePlan::Impl> make_decode_plan(const DecodeProblem& problem, const Forest& forest, const DecodeConfig& config,
                                                   const DecodeLimits& asked, const Limits& limits);
/// The same where the order of the forest, a complete() problem and a legal configuration are there already.
std::unique_ptr<DecodePlan::Impl> make_decode_plan(const DecodeProblem& problem, const Forest& forest, const ForestOrder& order,
                                                   const DecodeConfig& config, const DecodeLimits& asked, const Limits& limits);

}  // namespace sapwood
