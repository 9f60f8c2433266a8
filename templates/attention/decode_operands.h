// SPDX-License-Identifier: Apache-2.0
// K and V tiles as the B operands of mma.sync: 16-bit elements as ldmatrix delivers them, e4m3 by way of a conversion in registers.
// Each policy has three things that belong together: the order in which it contracts head dim (and so that of Q's fragments), the
// products, and the order in which it leaves the output's columns.
#pragma once

#include "attention/decode_traits.h"

namespace sapwood::kernel {

/// ldmatrix lane addresses of A fragments: row l%16, column l/16.
template <class Traits>
SAPWOOD_DEVICE u32 query_address(u32 tile, u32 step, u32 lane) {
    return tile + Traits::QTile::offset(lane % 16, step * 2 + lane / 16);
}

/// 16-bit elements. ldmatrix lane addresses: V takes row l%16, column l/16; K takes row l%8 + 8*(l/16), column (l/8)%2.
template <class Traits>
struct HalfOperands {
    using Element = typename Traits::Element;
    static constexpr u32 kSteps = Traits::kHeadDim / 16;
    // With Q in shared memory, four steps at a time: all of them unrolled would have every fragment in flight and spill.
    static constexpr u32 kUnrolled = Traits::kQueryInRegisters ? kSteps : 4;

    /// Fragment of Q's 16 rows at `tile`.
    SAPWOOD_DEVICE static void load_query(u32 (&a)[4], const DecodeShared<Traits>&, u32 tile, u32 step, u32 lane) {
        ldmatrix_x4(a, query_address<Traits>(tile, step, lane));
    }
    /// 16 rows of Q to where ldmatrix then finds the fragments.
    SAPWOOD_DEVICE static void hold_query(const DecodeShared<Traits>& shared, u32 from_tile, u32 to_tile, u32 lane) {
        const u8* from = shared.base + (from_tile - shared.address);
        u8* to = shared.base + (to_tile - shared.address);
        for (u32 i = lane; i < Traits::kHeadDim * 2; i += 32) {
            reinterpret_cast<U32x4*>(to)[i] = reinterpret_cast<const U32x4*>(from)[i];
        }
    }

    /// s += Q times 16 keys from each row of k_tile in `down`, for steps first … first + kUnrolled; `query(i)` is the fragment of
    /// step first + i.
    template <u32 kCount, class Query>
    SAPWOOD_DEVICE static void multiply_keys(f32 (&s)[kCount * 2][4], u32 k_tile, const u32 (&down)[kCount], u32 first, u32 lane,
                                             const Query& query) {
        const RowAddresses<typename Traits::KTile> keys(k_tile + first * 32, lane % 8 + lane / 16 * 8, lane / 8 % 2);
        SAPWOOD_UNROLL for (u32 i = 0; i < kUnrolled; ++i) {
            u32 held[4];
            const u32(&a)[4] = query(held, i);
            SAPWOOD_UNROLL for (u32 c = 0; c < kCount; ++c) {
                u32 b[4];
                ldmatrix_x4(b, keys.at(i, down[c]));
                mma_16x8x16<Element>(s[c * 2], a, b[0], b[1]);
                mma_16x8x16<Element>(s[c * 2 + 1], a, b[2], b[3]);
            }
        }
    }

    /// out += the weights of a chunk times its values, `down` rows below those of `values`.
    SAPWOOD_DEVICE static void multiply_values(f32 (&out)[Traits::kHeadDimV / 8][4], const u32 (&p)[4],
                                               const RowAddresses<typename Traits::VTile>& values, u32 down) {
        SAPWOOD_UNROLL for (u32 d = 0; d < Traits::kHeadDimV / 16; ++d) {
            u32 b[4];
            ldmatrix_x4_trans(b, values.at(d, down));
            mma_16x8x16<Element>(out[d * 2], p, b[0], b[1]);
            mma_16x8x16<Element>(out[d * 2 + 1], p, b[2], b[3]);
        }
    }
};

/// Bytes. The lane addresses are the same, of rows half as long: a fragment has twice the elements.
template <class Traits>
struct ByteOperands {
    using Element = typename Traits::Element;
    static constexpr u32 kSteps = Traits::kHeadDim / 16;
    // Whole periods of the keys' permutation: their addresses repeat from one round to the next.
    static constexpr u32 kUnrolled = Traits::kQueryInRegisters ? kSteps : Traits::KTile::kPeriod * 2;
    static_assert(kSteps % kUnrolled == 0);

    // ldmatrix gives a lane four consecutive d of a key, 4 t … 4 t + 3 of 16 (t = l%4), where the product wants those of k 2t, 2t +
    // 1 and 2t + 8, 2t + 9. In which order head dim is summed is all the same, so Q's fragments follow: the lane's are the d that
    // it has of the keys.
    SAPWOOD_DEVICE static void load_query(u32 (&a)[4], const DecodeShared<Traits>& shared, u32 tile, u32 step, u32 lane) {
        SAPWOOD_UNROLL for (u32 h = 0; h < 2; ++h) {
            const u32 at = tile + Traits::QTile::offset(lane / 4 + h * 8, step * 2 + lane % 4 / 2) + lane % 2 * 8;
            const U32x2 words = *reinterpret_cast<const U32x2*>(shared.base + (at - shared.address));
            a[h] = words.x;
            a[h + 2] = words.y;
        }
    }
    /// In that order, so that ldmatrix can read them: word 2t of 16 elements to the first half of them, word 2t + 1 to the second.
    SAPWOOD_DEVICE static void hold_query(const DecodeShared<Traits>& shared, u32 from_tile, u32 to_tile, u32 lane) {
        const u8* from = shared.base + (from_tile - shared.address);
        u8* to = shared.base + (to_tile - shared.address);
        for (u32 i = lane; i < 16 * kSteps; i += 32) {
            const u32 first = Traits::QTile::offset(i / kSteps, i % kSteps * 2);
            const u32 second = Traits::QTile::offset(i / kSteps, i % kSteps * 2 + 1);
            const U32x4 a = *reinterpret_cast<const U32x4*>(from + first), b = *reinterpret_cast<const U32x4*>(from + second);
            *reinterpret_cast<U32x4*>(to + first) = {a.x, a.z, b.x, b.z};
            *reinterpret_cast<U32x4*>(to + second) = {a.y, a.w, b.y, b.w};
        }
    }

    template <u32 kCount, class Query>
    SAPWOOD_DEVICE static void multiply_keys(f32 (&s)[kCount * 2][4], u32 k_tile, const u32 (&down)[kCount], u32 first, u32 lane,
                                             const Query& query) {
        const RowAddresses<typename Traits::KTile> keys(k_tile + first * 16, lane % 8 + lane / 16 * 8, lane / 8 % 2);
        SAPWOOD_UNROLL for (u32 i = 0; i < kUnrolled / 2; ++i) {
            u32 held[2][4];
            const u32(&a0)[4] = query(held[0], i * 2);
            const u32(&a1)[4] = query(held[1], i * 2 + 1);
            SAPWOOD_UNROLL for (u32 c = 0; c < kCount; ++c) {
                u32 b[4];
                ldmatrix_x4(b, keys.at(i, down[c]));  // eight keys of step 2i, of 2i + 1, then the other eight
                SAPWOOD_UNROLL for (u32 n = 0; n < 2; ++n) {
                    u32 low, high;
                    widen_e4m3<Element>(b[n * 2], low, high);
                    mma_16x8x16<Element>(s[c * 2 + n], a0, low, high);
                    widen_e4m3<Element>(b[n * 2 + 1], low, high);
                    mma_16x8x16<Element>(s[c * 2 + n], a1, low, high);
                }
            }
        }
    }

    // A transposed load of 16-bit units gives a lane two neighbouring columns, 2 (l/4) and the next, of two keys. The even ones
    // make one product and the odd ones another: blocks 2i and 2i + 1 of the output hold the even and the odd columns of 16.
    SAPWOOD_DEVICE static void multiply_values(f32 (&out)[Traits::kHeadDimV / 8][4], const u32 (&p)[4],
                                               const RowAddresses<typename Traits::VTile>& values, u32 down) {
        SAPWOOD_UNROLL for (u32 d = 0; d < Traits::kHeadDimV / 32; ++d) {
            u32 b[4];
            ldmatrix_x4_trans(b, values.at(d, down));  // keys 0 … 7 and 8 … 15 of 16 columns, then of the next 16
            SAPWOOD_UNROLL for (u32 n = 0; n < 2; ++n) {
                u32 even[2], odd[2];
                widen_e4m3<Fp16>(even_then_odd_bytes(b[n * 2]), even[0], odd[0]);
                widen_e4m3<Fp16>(even_then_odd_bytes(b[n * 2 + 1]), even[1], odd[1]);
                mma_16x8x16<Fp16>(out[d * 4 + n * 2], p, even[0], even[1]);
                mma_16x8x16<Fp16>(out[d * 4 + n * 2 + 1], p, odd[0], odd[1]);
            }
        }
    }
};

}  // namespace sapwood::kernel
