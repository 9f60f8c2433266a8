// SPDX-License-Identifier: Apache-2.0
// What the engine keeps with a plan that is served by another kernel than its own, that is not prepared yet, or that is traced.
// Most plans have none of it.
#pragma once

#include <memory>
#include <optional>

#include "engine/kernel_service.h"
#include "engine/trace_recorder.h"
#include "plan/decode_plan.h"

namespace sapwood {

/// A work list fits one tile shape, so another kernel for a plan means planning anew with its tiles. That is done where the forest
/// is at hand: when the plan is made, at the first call (from a copy kept until then), and in update(), which is never inside a
/// launch.
class PlanState final : public PlanHook {
public:
    PlanState(const std::shared_ptr<KernelService>& service, const DecodeLimits& asked) : service_(service), asked_(asked) {}

    void update(DecodePlan::Impl& plan, const Forest& forest) override;

    /// Keeps the forest until drop_forest(), for stand_in_now().
    void keep_forest(const Forest& forest) { forest_ = forest; }
    void drop_forest() { forest_.reset(); }
    /// Has `kernel` serve the plan in place of `wanted`.
    void stand_in(DecodePlan::Impl& plan, const Kernel& kernel, const KernelKey& wanted, const Forest& forest);
    /// The same with the forest that was kept; false if there is none.
    bool stand_in_now(DecodePlan::Impl& plan, const Kernel& kernel, const KernelKey& wanted);

    bool standing_in() const noexcept { return standing_in_; }
    const KernelKey& wanted() const noexcept { return wanted_; }
    /// A captured graph replays the present kernel over whatever the list holds then, so the list must stay in its tiles for good.
    bool fixed() const noexcept { return fixed_; }
    void fix() noexcept { fixed_ = true; }

    /// Trace.
    void trace(std::shared_ptr<TraceRecorder> recorder, const DecodePlan::Impl& plan, const Forest& forest);
    void count_launch() noexcept {
        if (record_ != nullptr) record_->launched.fetch_add(1, std::memory_order_relaxed);
    }

private:
    bool take_own_kernel(DecodePlan::Impl& plan, const Forest& forest);

    std::weak_ptr<KernelService> service_;
    DecodeLimits asked_;
    KernelKey wanted_;
    DecodeConfig wanted_config_;
    bool standing_in_ = false, fixed_ = false;
    std::optional<Forest> forest_;
    std::shared_ptr<TraceRecorder> recorder_;
    TraceRecord* record_ = nullptr;
};

inline PlanState* state_of(DecodePlan::Impl& plan) { return static_cast<PlanState*>(plan.hook.get()); }

}  // namespace sapwood
