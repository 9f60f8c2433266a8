// SPDX-License-Identifier: Apache-2.0
// The decode family's part in rendering.
#pragma once

#include "kernel/render.h"

namespace sapwood {

/// The parameter block is a MappedDecodeParams: the copy engine fetches K and V.
bool takes_tensor_maps(const KernelKey& key);
KernelSource decode_source(const KernelKey& key);
KernelResources decode_resources(const KernelKey& key);

}  // namespace sapwood
