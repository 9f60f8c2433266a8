// SPDX-License-Identifier: Apache-2.0
// Weights of the parts of a row: kLanes neighbouring lanes look after kLanes parts a step.
#pragma once

#include "isa/isa.h"

namespace sapwood::kernel {

template <u32 kLanes>
struct MergeWeights {
    f32 maximum = -infinity();  // of the logarithms so far
    f32 sum = 0;                // of the weights so far; 0: every part is empty

    /// Takes over one logarithm a lane (-inf: no part, or an empty one) and returns its weight, relative to the new maximum. What
    /// was added up before is to be multiplied by `old`. `unit` makes a base-2 exponent of a difference of logarithms: taken before
    /// that, the difference is exact where it matters and can overflow to -inf alone. With `halves`, half of the lanes look after
    /// one row and half after another.
    SAPWOOD_DEVICE f32 step(f32 logarithm, f32 unit, f32& old, bool halves = false) {
        f32 peak = logarithm;
        SAPWOOD_UNROLL for (u32 mask = kLanes / 2; mask > 0; mask /= 2) {
            const f32 other = shfl_xor(peak, mask);
            peak = halves && mask == kLanes / 2 ? peak : max_f32(peak, other);
        }
        peak = max_f32(peak, maximum);
        const f32 base = peak == -infinity() ? 0.0f : peak;  // -inf - -inf would be NaN
        old = exp2_approx((maximum - base) * unit);
        const f32 weight = exp2_approx((logarithm - base) * unit);
        f32 total = weight;
        SAPWOOD_UNROLL for (u32 mask = kLanes / 2; mask > 0; mask /= 2) {
            const f32 other = shfl_xor(total, mask);
            total = halves && mask == kLanes / 2 ? total : total + other;
        }
        sum = sum * old + total;
        maximum = peak;
        return weight;
    }
};

}  // namespace sapwood::kernel
