// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "abi.h"
#include "sapwood/decode.h"

namespace sapwood {

/// Checks the tensors of a call and fills them into `params` (strides in bytes). Throws kInvalidArgument naming the tensor.
void bind(const DecodeProblem& problem, const DecodeTensors& tensors, abi::DecodeParams& params);

}  // namespace sapwood
