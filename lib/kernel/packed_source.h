// SPDX-License-Identifier: Apache-2.0
// The packed families' part in rendering.
#pragma once

#include "kernel/render.h"

namespace sapwood {

KernelSource packed_forward_source(const KernelKey& key);
KernelResources packed_forward_resources(const KernelKey& key);
/// The kernels that make the tile lists of a pack with arrays.
KernelSource array_source(const KernelKey& key);
KernelResources array_resources(const KernelKey& key);
/// The three kernels of a backward pass.
KernelSource packed_backward_source(const KernelKey& key);
KernelResources packed_backward_resources(const KernelKey& key);

}  // namespace sapwood
