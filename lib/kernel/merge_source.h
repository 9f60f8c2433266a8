// SPDX-License-Identifier: Apache-2.0
// The merge family's part in rendering.
#pragma once

#include "kernel/render.h"

namespace sapwood {

KernelSource merge_source(const KernelKey& key);
KernelResources merge_resources(const KernelKey& key);

}  // namespace sapwood
