// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <memory>

#include "jit/artifact.h"
#include "jit/loaded_kernel.h"
#include "kernel/key.h"

namespace sapwood {

/// A kernel that is ready: compiled, and loaded unless the target has no device here.
struct Kernel {
    KernelKey key;
    std::shared_ptr<const jit::Artifact> artifact;
    std::unique_ptr<jit::LoadedKernel> loaded;
    int blocks_per_sm = 0;
};

}  // namespace sapwood
