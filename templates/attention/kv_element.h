// SPDX-License-Identifier: Apache-2.0
// KvElement policies: what K and V are made of, and what is multiplied with what in consequence.
#pragma once

#include "isa/isa.h"

namespace sapwood::kernel {

/// Elements of Q's type.
template <class Element>
struct SameKv {
    static constexpr u32 kBytes = 2;
    static constexpr bool kScaled = false;
    using Weight = Element;
};

/// e4m3, each KV head with a factor for its keys and one for its values. Keys are widened to Q's type, exactly. Values and weights
/// are multiplied in fp16, whatever Q is: it holds e4m3 exactly too, weights better than bf16, and is quicker made of bytes. Single
/// warps widen what they multiply; warpgroups find it widened in shared memory (decode_widening.h).
struct E4m3Kv {
    static constexpr u32 kBytes = 1;
    static constexpr bool kScaled = true;
    using Weight = Fp16;
};

}  // namespace sapwood::kernel
