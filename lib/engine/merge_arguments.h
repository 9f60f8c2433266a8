// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "merge_abi.h"
#include "sapwood/merge.h"

namespace sapwood {

/// Throws kInvalidProblem naming the field.
void check_merge(const MergeProblem& problem);

/// Checks the tensors of a call of a checked problem with at least one row, and fills `params`. Throws
/// kInvalidArgument naming the tensor.
void bind_merge(const MergeProblem& problem, const MergeTensors& tensors, std::int64_t rows, abi::MergeParams& params);

}  // namespace sapwood
