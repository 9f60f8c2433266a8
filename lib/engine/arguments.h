// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "abi.h"
#include "plan/decode_plan.h"

namespace sapwood {

/// Checks the tensors of a call and fills them into `params` (strides in bytes). Throws kInvalidArgument naming the tensor.
void bind(const DecodePlan::Impl& plan, const DecodeTensors& tensors, abi::DecodeParams& params);

}  // namespace sapwood
