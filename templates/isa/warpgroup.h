// SPDX-License-Identifier: Apache-2.0
// What only kernels for warpgroups use beyond isa.h: the copy engine, and products of 64 rows with both operands or one in shared
// memory. Apart from isa.h so that other kernels do not compile it. Again two bodies.
#pragma once

#include "isa/isa.h"
#include "packed_abi.h"

namespace sapwood::kernel {

/// How long what a copy brings into L2 is worth keeping.
enum class CacheHint : u32 { once, again };

/// An operand of a product in shared memory: 128-byte rows of 64 elements, swizzled by 128 bytes, eight of which make a brick of
/// 1024 bytes. Where it begins and, in words that only wgmma_* read, how far apart its bricks are. Constants but for the beginning.
struct WgmmaOperand {
    u32 low, high;
};

}  // namespace sapwood::kernel

#if defined(__CUDACC__)
#include "isa/cuda_warpgroup.h"
#else
#include "isa/host_warpgroup.h"
#endif
