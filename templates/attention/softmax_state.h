// SPDX-License-Identifier: Apache-2.0
// Running softmax of 16 query rows in the registers of a warp: lane l holds rows l/4 and l/4 + 8.
#pragma once

#include "isa/isa.h"

namespace sapwood::kernel {

/// What becomes of a row when all of its keys (of this part) have been seen.
struct RowEnd {
    f32 inverse;   // factor of the output
    f32 exponent;  // base-2 logarithm of the sum of exponentials; -inf for an empty row
    SAPWOOD_DEVICE RowEnd(f32 maximum, f32 sum)
        : inverse(sum > 0 ? reciprocal(sum) : 0.0f), exponent(sum > 0 ? maximum + log2_approx(sum) : -infinity()) {}
    /// Natural logarithm, as callers see it.
    SAPWOOD_DEVICE f32 lse() const { return exponent * kLn2; }
};

/// `maximum` is a base-2 exponent near the row's largest (see raise); `sum` is this lane's share until reduce_sum(). An empty row
/// has maximum kLeast and sum 0.
template <u32 kDim>
struct SoftmaxState {
    static constexpr u32 kBlocks = kDim / 8;
    /// Below every score but -inf, and finite, so that nothing need look out for -inf - -inf: -inf - kLeast = -inf, a weight of 0,
    /// and the first score outgrows it.
    static constexpr f32 kLeast = -3e38f;
    f32 out[kBlocks][4];
    f32 maximum[2];
    f32 sum[2];

    SAPWOOD_DEVICE void clear() {
        SAPWOOD_UNROLL for (u32 i = 0; i < kBlocks; ++i) { SAPWOOD_UNROLL for (u32 j = 0; j < 4; ++j) out[i][j] = 0; }
        SAPWOOD_UNROLL for (u32 h = 0; h < 2; ++h) {
            maximum[h] = kLeast;
            sum[h] = 0;
        }
    }

    SAPWOOD_DEVICE void rescale_out(f32 factor0, f32 factor1) {
        SAPWOOD_UNROLL for (u32 i = 0; i < kBlocks; ++i) {
            out[i][0] *= factor0;
            out[i][1] *= factor0;
            out[i][2] *= factor1;
            out[i][3] *= factor1;
        }
    }

    SAPWOOD_DEVICE static f32 quad_max(f32 v) {
        v = max_f32(v, shfl_xor(v, 1));
        return max_f32(v, shfl_xor(v, 2));
    }
    /// Takes over new exponents, score * factor, each lane giving the largest score of those it holds, when some row of the warp
    /// has outgrown its maximum by more than kSlack: weights up to 2^kSlack are as exact as those up to 1, and most steps need
    /// neither a reduction nor rescaling. True if so, for the whole warp: then `out` is still to be multiplied by `rescale`.
    static constexpr f32 kSlack = 8;
    SAPWOOD_DEVICE bool raise(f32 m0, f32 m1, f32 factor, f32 (&rescale)[2]) {
        if (!warp_any(fma_f32(m0, factor, -maximum[0]) > kSlack || fma_f32(m1, factor, -maximum[1]) > kSlack)) return false;
        m0 = max_f32(quad_max(m0) * factor, maximum[0]);
        m1 = max_f32(quad_max(m1) * factor, maximum[1]);
        rescale[0] = exp2_approx(maximum[0] - m0);
        rescale[1] = exp2_approx(maximum[1] - m1);
        maximum[0] = m0;
        maximum[1] = m1;
        sum[0] *= rescale[0];
        sum[1] *= rescale[1];
        return true;
    }

    /// The same of row `half` of this lane's two.
    SAPWOOD_DEVICE bool raise_row(u32 half, f32 m, f32 factor, f32& rescale) {
        if (!warp_any(fma_f32(m, factor, -maximum[half]) > kSlack)) return false;
        m = max_f32(quad_max(m) * factor, maximum[half]);
        rescale = exp2_approx(maximum[half] - m);
        maximum[half] = m;
        sum[half] *= rescale;
        return true;
    }

    /// Scores to weights, exp2(score * factor - maximum), which the sums take in.
    template <u32 kScores>
    SAPWOOD_DEVICE void exponentials(f32 (&s)[kScores][4], f32 factor) {
        f32 added[4];
        SAPWOOD_UNROLL for (u32 i = 0; i < kScores; ++i) {
            SAPWOOD_UNROLL for (u32 j = 0; j < 4; ++j) {
                s[i][j] = exp2_approx(fma_f32(s[i][j], factor, -maximum[j / 2]));
                added[j] = i == 0 ? s[i][j] : added[j] + s[i][j];
            }
        }
        sum[0] += added[0] + added[1];
        sum[1] += added[2] + added[3];
    }

    /// The same of row `half` of this lane's two.
    template <u32 kScores, class Under>
    SAPWOOD_DEVICE void exponentials_of_row(u32 half, f32 (&s)[kScores][4], f32 factor, const Under& under) {
        f32 added[2];
        SAPWOOD_UNROLL for (u32 i = 0; i < kScores; ++i) {
            SAPWOOD_UNROLL for (u32 j = 0; j < 2; ++j) {
                f32& weight = s[i][half * 2 + j];
                weight = exp2_approx(fma_f32(weight, factor, -maximum[half]));
                added[j] = i == 0 ? weight : added[j] + weight;
            }
            under(i);
        }
        sum[half] += added[0] + added[1];
    }

    /// Weights by the maxima as they are, without a look at the scores first; `take(i, weights)` gets those of s[i]. False, and
    /// nothing added to the sums, if some weight of the warp may be larger than 2^(kSlack + 6), which fp16 and the sums can hold:
    /// then some score exceeds its row's maximum by more than kSlack (a lane has at most 32 of a row), so that raise() takes it
    /// over. The scores stay as they are. To a row without a maximum any score is too large.
    template <u32 kScores, class Take>
    SAPWOOD_DEVICE bool try_exponentials(const f32 (&s)[kScores][4], f32 factor, const Take& take) {
        static_assert(kScores <= 16);
        constexpr f32 kMost = 1 << (static_cast<u32>(kSlack) + 6);
        f32 added[4];
        SAPWOOD_UNROLL for (u32 i = 0; i < kScores; ++i) {
            f32 weight[4];
            SAPWOOD_UNROLL for (u32 j = 0; j < 4; ++j) {
                weight[j] = exp2_approx(fma_f32(s[i][j], factor, -maximum[j / 2]));
                added[j] = i == 0 ? weight[j] : added[j] + weight[j];
            }
            take(i, weight);
        }
        const f32 x = added[0] + added[1], y = added[2] + added[3];
        if (warp_any(!(x < kMost) || !(y < kMost))) return false;
        sum[0] += x;
        sum[1] += y;
        return true;
    }

    SAPWOOD_DEVICE void reduce_sum() {
        SAPWOOD_UNROLL for (u32 h = 0; h < 2; ++h) {
            sum[h] += shfl_xor(sum[h], 1);
            sum[h] += shfl_xor(sum[h], 2);
        }
    }

    SAPWOOD_DEVICE RowEnd end(u32 half) const { return RowEnd(maximum[half], sum[half]); }

    /// Adds another part of the same rows; both with reduced sums.
    SAPWOOD_DEVICE void rescale_to(f32 m0, f32 m1) {
        const f32 factor[2] = {exp2_approx(maximum[0] - m0), exp2_approx(maximum[1] - m1)};
        SAPWOOD_UNROLL for (u32 h = 0; h < 2; ++h) sum[h] *= factor[h];
        rescale_out(factor[0], factor[1]);
        maximum[0] = m0;
        maximum[1] = m1;
    }
};

}  // namespace sapwood::kernel
