// SPDX-License-Identifier: Apache-2.0
// The trace's part in plans over packs: one line where a plan is made, one where it is launched.
#pragma once

#include "engine/engine_impl.h"
#include "plan/backward_plan.h"
#include "plan/packed_plan.h"

namespace sapwood {

template <class PlanImpl>
void trace_plan(const Engine::Impl& engine, PlanImpl& plan, const Pack& pack, TracedPack record) {
    if (engine.trace == nullptr) return;
    record.problem = plan.problem, record.target = plan.limits.target;
    record.rows = pack.rows(), record.tokens = pack.keys(), record.visible_pairs = pack.visible_pairs();
    record.runs = static_cast<std::int64_t>(pack.runs().size());
    if (PackTraceRecord* const kept = engine.trace->planned(record))
        plan.launches = {engine.trace, &kept->launched};  // the recorder stays as long as a plan that counts in it
}

template <class PlanImpl>
void trace_launch(const PlanImpl& plan) noexcept {
    if (plan.launches != nullptr) plan.launches->fetch_add(1, std::memory_order_relaxed);
}

}  // namespace sapwood
