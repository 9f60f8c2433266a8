// SPDX-License-Identifier: Apache-2.0
// What only kernels for warpgroups use beyond isa.h: the copy engine, and products of 64 rows with both operands or one in shared
// memory. Apart from isa.h so that other kernels do not compile it. Again two bodies.
#pragma once

#include "isa/isa.h"
#include "packed_abi.h"

namespace sapwood::kernel {

/// How long what a copy brings into L2 is worth keeping.
enum class CacheHint : u32 { usual, once, again };

}  // namespace sapwood::kernel

#if defined(__CUDACC__)
#include "isa/cuda_warpgroup.h"
#else
#include "isa/host_warpgroup.h"
#endif
