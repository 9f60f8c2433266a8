// SPDX-License-Identifier: Apache-2.0
// Every hardware primitive that the kernels use, behind functions with two bodies: inline PTX (cuda*.h) and plain C++ on fibers
// (host*.h). Both have the same lane-to-element mapping. No other template file knows the target.
#pragma once

#include "isa/types.h"

#if defined(__CUDACC__)
#include "isa/cuda.h"
#include "isa/cuda_memory.h"
#else
#include "isa/host.h"
#include "isa/host_memory.h"
#endif
