// SPDX-License-Identifier: Apache-2.0
#include "engine/plan_state.h"

#include <algorithm>

#include "base/error.h"
#include "base/log.h"
#include "engine/plan_buffers.h"
#include "kernel/key_text.h"

namespace sapwood {
namespace {

WorkCounts larger(const WorkCounts& a, const WorkCounts& b) {
    return {.items = std::max(a.items, b.items),
            .requests = std::max(a.requests, b.requests),
            .chunks = std::max(a.chunks, b.chunks),
            .merges = std::max(a.merges, b.merges),
            .slots = std::max(a.slots, b.slots),
            .mask_rows = std::max(a.mask_rows, b.mask_rows),
            .mask_words = std::max(a.mask_words, b.mask_words),
            .gather = std::max(a.gather, b.gather)};
}

}  // namespace

void PlanState::stand_in(DecodePlan::Impl& plan, const Kernel& kernel, const KernelKey& wanted, const Forest& forest) {
    const WorkCounts room = plan.capacity;  // of the wanted tiles: both must fit, so that the switch is one of lists alone
    const DecodeConfig kept = plan.config;
    plan.config = with_tiles(kept, kernel.key);
    try {
        plan.plan(forest, order_of(forest), &asked_);
    } catch (...) {
        plan.config = kept;
        throw;
    }
    plan.capacity = larger(plan.capacity, room);
    plan.key = kernel.key.to_string();
    wanted_ = wanted;
    wanted_config_ = kept;
    standing_in_ = true;
}

bool PlanState::stand_in_now(DecodePlan::Impl& plan, const Kernel& kernel, const KernelKey& wanted) {
    if (!forest_) return false;
    stand_in(plan, kernel, wanted, *forest_);
    return true;
}

/// False: nothing has changed.
bool PlanState::take_own_kernel(DecodePlan::Impl& plan, const Forest& forest) {
    const auto service = service_.lock();
    Kernel* own = service != nullptr ? service->find(wanted_) : nullptr;
    if (own == nullptr) return false;
    auto* buffers = static_cast<PlanBuffers*>(plan.device.get());
    if (buffers != nullptr && buffers->engine() != service->identity) return false;
    const DecodeConfig kept = plan.config;
    plan.config = wanted_config_;
    try {
        plan.plan(forest, order_of(forest), buffers != nullptr ? nullptr : &asked_);
    } catch (const Error& error) {
        plan.config = kept;
        if (error.code() != ErrorCode::kCapacityExceeded) throw;
        // The present tiles may still fit; if not, the plain update that follows says so.
        log::debug("plan stays with kernel " + plan.key + ": in the tiles of its own kernel, " + error.what());
        return false;
    }
    if (buffers != nullptr) buffers->set_kernel(own);
    plan.key = wanted_.to_string();
    standing_in_ = false;
    service->counters.switches.fetch_add(1, std::memory_order_relaxed);
    return true;
}

void PlanState::update(DecodePlan::Impl& plan, const Forest& forest) {
    if (!standing_in_ || fixed_ || !take_own_kernel(plan, forest)) plan.update(forest);
    if (forest_) forest_ = forest;
    if (recorder_ != nullptr) record_ = recorder_->updated(plan, forest, record_);
}

void PlanState::trace(std::shared_ptr<TraceRecorder> recorder, const DecodePlan::Impl& plan, const Forest& forest) {
    recorder_ = std::move(recorder);
    record_ = recorder_->planned(plan, forest);
}

}  // namespace sapwood
