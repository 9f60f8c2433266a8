// SPDX-License-Identifier: Apache-2.0
#include "engine/calls.h"

#include "base/error.h"

namespace sapwood {

void check_made_for(const Limits& plan, const KernelService& service) {
    const TargetSetup& here = service.setup;
    if (plan.target == here.target && plan.sms == here.limits.sms) return;
    raise(ErrorCode::kUnsupportedDevice, "the plan was made for " + plan.target + " with " + std::to_string(plan.sms) +
                                             " SMs; this engine runs on " + here.target + " with " +
                                             std::to_string(here.limits.sms) + ". Plan with this engine");
}

void check_not_capturing(const KernelService& service, void* stream, bool prepared) {
    if (!service.setup.memory->capturing(stream)) return;
    raise(ErrorCode::kNotPrepared, std::string("the stream is capturing and the plan is not ") +
                                       (prepared ? "uploaded" : "prepared") +
                                       "; call Engine::prepare and Engine::upload before the capture");
}

}  // namespace sapwood
