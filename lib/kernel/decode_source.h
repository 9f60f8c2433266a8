// SPDX-License-Identifier: Apache-2.0
// The decode family's part in rendering.
#pragma once

#include "kernel/render.h"

namespace sapwood {

KernelSource decode_source(const KernelKey& key);
KernelResources decode_resources(const KernelKey& key);

}  // namespace sapwood
