// SPDX-License-Identifier: Apache-2.0
// Warp collectives on fibers: each lane deposits its operands, the last one to arrive computes for all 32.
#pragma once

#include "isa/host_convert.h"
#include "isa/host_runtime.h"

namespace sapwood::kernel {

[[noreturn]] inline void host_fail(const char* what, u64 found, u64 limit) {
    HostThread* self = host_self();
    self->block->runtime->fail(self, what, found, limit);
    __builtin_unreachable();
}

/// Pointer to `bytes` bytes at a shared address, or an error.
inline u8* host_shared(const HostBlock& block, u32 shared, u32 bytes, u32 alignment) {
    if (shared < kHostSharedStart || shared > block.shared_end || block.shared_end - shared < bytes) [[unlikely]] {
        host_fail("ldmatrix: shared address outside the block's dynamic shared memory", shared, block.shared_end);
    }
    if (shared % alignment != 0) [[unlikely]]
        host_fail("ldmatrix: misaligned shared address", shared, alignment);
    return block.shared + shared;
}

// --- what the last lane runs -----------------------------------------------------------------------------------------
inline void host_run_sync(HostWarp&) {}
inline void host_run_exchange(HostWarp& warp) { __builtin_memcpy(warp.out, warp.in, sizeof(warp.in)); }
inline void host_run_any(HostWarp& warp) {
    u32 any = 0;
    for (u32 lane = 0; lane < 32; lane++) any |= warp.in[lane];
    for (u32 lane = 0; lane < 32; lane++) warp.out[lane] = any;
}
inline void host_run_ballot(HostWarp& warp) {
    u32 bits = 0;
    for (u32 lane = 0; lane < 32; lane++) bits |= (warp.in[lane] != 0 ? 1u : 0u) << lane;
    for (u32 lane = 0; lane < 32; lane++) warp.out[lane] = bits;
}

/// 8x8 elements of 16 bits, by columns instead of rows.
inline void host_transpose(HostU16x8 (&m)[8]) {
    HostU16x8 t[8];
    for (u32 step = 0; step < 3; step++) {  // three perfect shuffles of the 64 elements swap the two halves of their index
        for (u32 i = 0; i < 4; i++) {
            t[2 * i] = __builtin_shufflevector(m[i], m[i + 4], 0, 8, 1, 9, 2, 10, 3, 11);
            t[2 * i + 1] = __builtin_shufflevector(m[i], m[i + 4], 4, 12, 5, 13, 6, 14, 7, 15);
        }
        for (u32 i = 0; i < 8; i++) m[i] = t[i];
    }
}

/// Lane l receives elements 2(l%4), 2(l%4)+1 of row l/4 of each matrix; transposed: of column l/4. A row of 16 bytes is thus what
/// four neighbouring lanes receive.
template <bool Trans>
void host_run_ldmatrix(HostWarp& warp) {
    for (u32 matrix = 0; matrix < 4; matrix++) {
        HostU16x8 rows[8];
        for (u32 row = 0; row < 8; row++) {
            rows[row] = *reinterpret_cast<const HostU16x8*>(host_shared(*warp.block, warp.in[matrix * 8 + row], 16, 16));
        }
        if constexpr (Trans) host_transpose(rows);
        for (u32 row = 0; row < 8; row++) *reinterpret_cast<HostU16x8*>(&warp.fragments[matrix][row * 4]) = rows[row];
    }
}

/// d[16][8] += a[16][16] * b[16][8], k ascending. Products of 16-bit values are exact in fp32, so that a fused and an unfused
/// multiply-add agree (subnormal products of bf16 aside) and the result does not depend on the CPU.
template <class T>
[[gnu::always_inline]] inline void host_mma_body(HostWarp& warp) {
    alignas(64) f32 a[16][16];
    alignas(64) f32 b[16][8];
    for (u32 row = 0; row < 16; row++) {
        host_widen8<T>(warp.a[row], a[row]);
        host_widen8<T>(warp.a[row] + 8, a[row] + 8);
        host_widen8<T>(warp.b[row], b[row]);
    }
    for (u32 row = 0; row < 16; row += 4) {  // four chains of additions hide each other's latency
        auto* d = reinterpret_cast<HostF32x8*>(warp.d[row]);
        HostF32x8 d0 = d[0], d1 = d[1], d2 = d[2], d3 = d[3];
        for (u32 k = 0; k < 16; k++) {
            const HostF32x8 bk = *reinterpret_cast<const HostF32x8*>(b[k]);
            d0 += a[row][k] * bk;
            d1 += a[row + 1][k] * bk;
            d2 += a[row + 2][k] * bk;
            d3 += a[row + 3][k] * bk;
        }
        d[0] = d0, d[1] = d1, d[2] = d2, d[3] = d3;
    }
}
#if defined(__x86_64__)
template <class T>
[[gnu::target("avx2,fma")]] void host_mma_wide(HostWarp& warp) {
    host_mma_body<T>(warp);
}
#endif
template <class T>
void host_run_mma(HostWarp& warp) {
#if defined(__x86_64__)
    if (warp.block->wide) return host_mma_wide<T>(warp);
#endif
    host_mma_body<T>(warp);
}

/// d[16][64] += a[16][16] * b[16][64] for the warp's 16 of the 64 rows; b lies in 128-byte rows, group_bytes from every eight to
/// the next, whose 16-byte columns are permuted by the absolute address, a row for each n (K and Q) or, transposed, for each k (V).
template <class T, bool kTransposed>
[[gnu::always_inline]] inline void host_wgmma_body(HostWarp& warp) {
    alignas(64) f32 a[16][16];
    alignas(64) f32 b[16][64];
    for (u32 row = 0; row < 16; row++) {
        host_widen8<T>(warp.a[row], a[row]);
        host_widen8<T>(warp.a[row] + 8, a[row] + 8);
    }
    const u32 start = warp.descriptor;
    constexpr u32 kRows = kTransposed ? 16 : 64, kChunks = kTransposed ? 8 : 2;
    for (u32 row = 0; row < kRows; row++) {
        for (u32 chunk = 0; chunk < kChunks; chunk++) {
            const u32 straight = start + row / 8 * warp.group_bytes + row % 8 * 128 + chunk * 16;
            const u32 address = straight ^ (straight >> 7 & 7) << 4;
            alignas(32) f32 values[8];
            host_widen8<T>(reinterpret_cast<const u16*>(host_shared(*warp.block, address, 16, 16)), values);
            for (u32 i = 0; i < 8; i++) (kTransposed ? b[row][chunk * 8 + i] : b[chunk * 8 + i][row]) = values[i];
        }
    }
    for (u32 row = 0; row < 16; row++) {
        for (u32 n = 0; n < 64; n += 32) {
            auto* d = reinterpret_cast<HostF32x8*>(&warp.d64[row][n]);
            HostF32x8 d0 = d[0], d1 = d[1], d2 = d[2], d3 = d[3];
            for (u32 k = 0; k < 16; k++) {
                const auto* bk = reinterpret_cast<const HostF32x8*>(&b[k][n]);
                d0 += a[row][k] * bk[0];
                d1 += a[row][k] * bk[1];
                d2 += a[row][k] * bk[2];
                d3 += a[row][k] * bk[3];
            }
            d[0] = d0, d[1] = d1, d[2] = d2, d[3] = d3;
        }
    }
}
#if defined(__x86_64__)
template <class T, bool kTransposed>
[[gnu::target("avx2,fma")]] void host_wgmma_wide(HostWarp& warp) {
    host_wgmma_body<T, kTransposed>(warp);
}
#endif
template <class T, bool kTransposed>
void host_run_wgmma(HostWarp& warp) {
#if defined(__x86_64__)
    if (warp.block->wide) return host_wgmma_wide<T, kTransposed>(warp);
#endif
    host_wgmma_body<T, kTransposed>(warp);
}

inline constexpr HostWarpOp kHostSync{"warp_sync", host_run_sync};
inline constexpr HostWarpOp kHostShfl{"shfl", host_run_exchange};
inline constexpr HostWarpOp kHostShflXor{"shfl_xor", host_run_exchange};
inline constexpr HostWarpOp kHostAny{"warp_any", host_run_any};
inline constexpr HostWarpOp kHostBallot{"warp_ballot", host_run_ballot};
template <bool Trans>
inline constexpr HostWarpOp kHostLdmatrix{Trans ? "ldmatrix_x4_trans" : "ldmatrix_x4", host_run_ldmatrix<Trans>};
template <class T>
inline constexpr HostWarpOp kHostMma{"mma_16x8x16", host_run_mma<T>};
template <class T, bool kTransposed>
inline constexpr HostWarpOp kHostWgmma{"wgmma_64x64x16", host_run_wgmma<T, kTransposed>};

// --- what each lane does ---------------------------------------------------------------------------------------------
inline void host_meet(HostThread* self, const HostWarpOp& op) { self->block->runtime->meet(self, &op); }

template <bool Trans>
inline void host_ldmatrix(u32 (&r)[4], u32 shared) {
    HostThread* self = host_self();
    self->warp->in[self->lane] = shared;
    host_meet(self, kHostLdmatrix<Trans>);
    for (u32 matrix = 0; matrix < 4; matrix++) r[matrix] = self->warp->fragments[matrix][self->lane];
}

inline void host_deposit_a(HostWarp& warp, const u32 (&a)[4], u32 group, u32 pair) {
    __builtin_memcpy(&warp.a[group][pair], &a[0], 4);
    __builtin_memcpy(&warp.a[group + 8][pair], &a[1], 4);
    __builtin_memcpy(&warp.a[group][pair + 8], &a[2], 4);
    __builtin_memcpy(&warp.a[group + 8][pair + 8], &a[3], 4);
}

template <class T>
inline void host_mma(f32 (&d)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    HostThread* self = host_self();
    HostWarp& warp = *self->warp;
    const u32 group = self->lane / 4, pair = self->lane % 4 * 2;
    host_deposit_a(warp, a, group, pair);
    warp.b[pair][group] = static_cast<u16>(b0);
    warp.b[pair + 1][group] = static_cast<u16>(b0 >> 16);
    warp.b[pair + 8][group] = static_cast<u16>(b1);
    warp.b[pair + 9][group] = static_cast<u16>(b1 >> 16);
    __builtin_memcpy(&warp.d[group][pair], &d[0], 8);
    __builtin_memcpy(&warp.d[group + 8][pair], &d[2], 8);
    host_meet(self, kHostMma<T>);
    __builtin_memcpy(&d[0], &warp.d[group][pair], 8);
    __builtin_memcpy(&d[2], &warp.d[group + 8][pair], 8);
}

template <class T, bool kTransposed>
inline void host_wgmma(f32 (&d)[8][4], const u32 (&a)[4], u32 b, u32 group_bytes, bool accumulate) {
    HostThread* self = host_self();
    HostWarp& warp = *self->warp;
    const u32 group = self->lane / 4, pair = self->lane % 4 * 2;
    host_deposit_a(warp, a, group, pair);
    warp.descriptor = b;
    warp.group_bytes = group_bytes;
    for (u32 n = 0; n < 8; n++) {
        const f32 zero[4] = {};
        const f32* from = accumulate ? d[n] : zero;
        __builtin_memcpy(&warp.d64[group][n * 8 + pair], from, 8);
        __builtin_memcpy(&warp.d64[group + 8][n * 8 + pair], from + 2, 8);
    }
    host_meet(self, kHostWgmma<T, kTransposed>);
    for (u32 n = 0; n < 8; n++) {
        __builtin_memcpy(&d[n][0], &warp.d64[group][n * 8 + pair], 8);
        __builtin_memcpy(&d[n][2], &warp.d64[group + 8][n * 8 + pair], 8);
    }
}

}  // namespace sapwood::kernel
