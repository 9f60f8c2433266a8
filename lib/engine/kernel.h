// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>

#include "jit/artifact.h"
#include "jit/disk_cache.h"
#include "jit/loaded_kernel.h"
#include "kernel/key.h"

namespace sapwood {

/// A kernel that is ready: compiled, and loaded unless the target has no device here.
struct Kernel {
    KernelKey key;
    std::shared_ptr<const jit::Artifact> artifact;
    std::unique_ptr<jit::LoadedKernel> loaded;
    int blocks_per_sm = 0;
    jit::Origin origin = jit::Origin::memory;
    std::atomic<std::uint64_t> calls{0}, stand_in_calls{0};
};

}  // namespace sapwood
