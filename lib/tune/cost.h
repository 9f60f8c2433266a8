// SPDX-License-Identifier: Apache-2.0
// What a plan costs with a configuration's kernel, without measuring it: the order in which candidates are worth measuring, and the
// choice where nothing is measured.
#pragma once

#include "plan/decode_plan.h"
#include "sapwood/tune.h"

namespace sapwood::tune {

struct PlanCost {
    double us = 0;             // of the launch
    double arithmetic_us = 0;  // of it, each worker's products alone
};

/// The plan's work items as the kernel's blocks draw them.
PlanCost launch_cost(const DecodePlan::Impl& plan);

}  // namespace sapwood::tune
