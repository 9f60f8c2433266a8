// SPDX-License-Identifier: Apache-2.0
// Score policies: from the raw product q·k to the exponent of the base-2 softmax, in two steps. transform() works on every product
// before the mask; the exponent is factor() times what it gives, multiplied in the same instruction that subtracts the row maximum.
#pragma once

#include "abi.h"
#include "isa/isa.h"

namespace sapwood::kernel {

/// scale * q·k, times log2(e), for a positive scale: the largest product has the largest exponent.
struct ScaledScore {
    static constexpr bool kTransforms = false;
    f32 scale_log2;
    SAPWOOD_DEVICE explicit ScaledScore(const abi::DecodeParams& params) : scale_log2(params.scale_log2) {}
    SAPWOOD_DEVICE ScaledScore(f32 scale, f32) : scale_log2(scale) {}
    SAPWOOD_DEVICE f32 factor() const { return scale_log2; }
    SAPWOOD_DEVICE f32 transform(f32 product) const { return product; }
};

/// The same for a negative scale.
struct NegatedScore {
    static constexpr bool kTransforms = true;
    f32 scale_log2;
    SAPWOOD_DEVICE explicit NegatedScore(const abi::DecodeParams& params) : scale_log2(-params.scale_log2) {}
    SAPWOOD_DEVICE NegatedScore(f32 scale, f32) : scale_log2(-scale) {}
    SAPWOOD_DEVICE f32 factor() const { return scale_log2; }
    SAPWOOD_DEVICE f32 transform(f32 product) const { return -product; }
    SAPWOOD_DEVICE f32 slope(f32) const { return 1.0f; }
};

/// cap * tanh(scale * q·k / cap), times log2(e). tanh(x) = 1 - 2 / (1 + 2^(2 x log2 e)) keeps an absolute error of 2^-21 or so,
/// where tanh.approx has 2^-11: too much once multiplied by a cap of 50.
struct SoftcapScore {
    static constexpr bool kTransforms = true;
    f32 exponent_scale;
    f32 cap_log2;
    SAPWOOD_DEVICE explicit SoftcapScore(const abi::DecodeParams& params) : SoftcapScore(params.scale_log2, params.softcap_log2) {}
    SAPWOOD_DEVICE SoftcapScore(f32 scale, f32 cap) : exponent_scale(scale * (2 * kLog2E)), cap_log2(cap) {}
    SAPWOOD_DEVICE f32 factor() const { return 1.0f; }
    SAPWOOD_DEVICE f32 transform(f32 product) const {
        const f32 e = exp2_approx(product * exponent_scale);  // +inf for large products: 2 / inf = 0
        return fma_f32(-2.0f * reciprocal(1.0f + e), cap_log2, cap_log2);
    }
    /// Of the score against scale * q·k, from what transform() gave: 1 - tanh^2. 0 where the mask has put -inf.
    SAPWOOD_DEVICE f32 slope(f32 transformed) const {
        const f32 t = transformed * reciprocal(cap_log2);
        return transformed == -infinity() ? 0.0f : fma_f32(-t, t, 1.0f);
    }
};

}  // namespace sapwood::kernel
