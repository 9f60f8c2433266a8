// SPDX-License-Identifier: Apache-2.0
// Inline-PTX bodies of what touches global memory.
#pragma once

#include "isa/cuda.h"

namespace sapwood::kernel {

/// Read-only for the whole kernel: may go through the non-coherent path.
SAPWOOD_DEVICE U32x4 load_readonly_16(const void* p) {
    U32x4 v;
    asm volatile("ld.global.nc.v4.u32 {%0,%1,%2,%3}, [%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(p));
    return v;
}
SAPWOOD_DEVICE u32 load_readonly_4(const void* p) {
    u32 v;
    asm volatile("ld.global.nc.u32 %0, [%1];" : "=r"(v) : "l"(p));
    return v;
}
SAPWOOD_DEVICE u64 load_readonly_8(const void* p) {
    u64 v;
    asm volatile("ld.global.nc.u64 %0, [%1];" : "=l"(v) : "l"(p));
    return v;
}
/// What a kernel before this one may still have been writing when this one began: through the coherent path, behind
/// wait_for_earlier_kernels.
SAPWOOD_DEVICE u32 load_earlier_4(const void* p) {
    u32 v;
    asm volatile("ld.global.u32 %0, [%1];" : "=r"(v) : "l"(p));
    return v;
}
SAPWOOD_DEVICE U32x2 load_earlier_8(const void* p) {
    U32x2 v;
    asm volatile("ld.global.v2.u32 {%0,%1}, [%2];" : "=r"(v.x), "=r"(v.y) : "l"(p));
    return v;
}
SAPWOOD_DEVICE U32x4 load_earlier_16(const void* p) {
    U32x4 v;
    asm volatile("ld.global.v4.u32 {%0,%1,%2,%3}, [%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(p));
    return v;
}
/// From L2, never L1: for data that other blocks of the same kernel have written.
SAPWOOD_DEVICE U32x2 load_shared_by_blocks_8(const void* p) {
    U32x2 v;
    asm volatile("ld.global.cg.v2.u32 {%0,%1}, [%2];" : "=r"(v.x), "=r"(v.y) : "l"(p) : "memory");
    return v;
}
SAPWOOD_DEVICE f32 load_shared_by_blocks(const f32* p) {
    f32 v;
    asm volatile("ld.global.cg.f32 %0, [%1];" : "=f"(v) : "l"(p) : "memory");
    return v;
}
/// Of memory that this kernel may write later, each address by the thread that has read it. 16 bytes that are read once go past L1.
SAPWOOD_DEVICE U32x4 load_once_16(const void* p) {
    U32x4 v;
    asm volatile("ld.global.L1::no_allocate.v4.u32 {%0,%1,%2,%3}, [%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(p));
    return v;
}
SAPWOOD_DEVICE f32 load_f32(const f32* p) {
    f32 v;
    asm volatile("ld.global.f32 %0, [%1];" : "=f"(v) : "l"(p));
    return v;
}
SAPWOOD_DEVICE void store_4(void* p, u32 v) { asm volatile("st.global.u32 [%0], %1;" ::"l"(p), "r"(v) : "memory"); }
SAPWOOD_DEVICE void store_8(void* p, u32 a, u32 b) {
    asm volatile("st.global.v2.u32 [%0], {%1,%2};" ::"l"(p), "r"(a), "r"(b) : "memory");
}
SAPWOOD_DEVICE void store_16(void* p, u32 a, u32 b, u32 c, u32 d) {
    asm volatile("st.global.v4.u32 [%0], {%1,%2,%3,%4};" ::"l"(p), "r"(a), "r"(b), "r"(c), "r"(d) : "memory");
}
SAPWOOD_DEVICE void store_f32(f32* p, f32 v) { asm volatile("st.global.f32 [%0], %1;" ::"l"(p), "f"(v) : "memory"); }
SAPWOOD_DEVICE u32 f32_bits(f32 v) { return __float_as_uint(v); }
SAPWOOD_DEVICE f32 bits_f32(u32 v) { return __uint_as_float(v); }

/// Adds a warp's 16x8 block of accumulators to 128 sums, each addition atomic, and reads such sums. Where four values go in one
/// instruction, from SM 9.0 on, a lane's lie side by side, as bulk copies of them do; elsewhere the lanes' do, because then an
/// instruction touches whole sectors.
SAPWOOD_DEVICE void add_accumulators(f32* sums, const f32 (&d)[4]) {
#if __CUDA_ARCH__ >= 900
    asm volatile("red.relaxed.gpu.global.add.v4.f32 [%0], {%1, %2, %3, %4};" ::"l"(sums + lane_id() * 4), "f"(d[0]), "f"(d[1]),
                 "f"(d[2]), "f"(d[3])
                 : "memory");
#else
    SAPWOOD_UNROLL for (u32 i = 0; i < 4; ++i) {
        asm volatile("red.relaxed.gpu.global.add.f32 [%0], %1;" ::"l"(sums + i * 32 + lane_id()), "f"(d[i]) : "memory");
    }
#endif
}
SAPWOOD_DEVICE void load_accumulators(const f32* sums, f32 (&d)[4]) {
#if __CUDA_ARCH__ >= 900
    const U32x4 v = load_readonly_16(sums + lane_id() * 4);
    d[0] = bits_f32(v.x), d[1] = bits_f32(v.y), d[2] = bits_f32(v.z), d[3] = bits_f32(v.w);
#else
    SAPWOOD_UNROLL for (u32 i = 0; i < 4; ++i) d[i] = bits_f32(load_readonly_4(sums + i * 32 + lane_id()));
#endif
}

/// *p = (*p >= limit) ? 0 : *p + 1, acquire and release at GPU scope; returns the old value. Self-resetting arrival counter.
SAPWOOD_DEVICE u32 atomic_inc_acq_rel(u32* p, u32 limit) {
    u32 old;
    asm volatile("atom.acq_rel.gpu.global.inc.u32 %0, [%1], %2;" : "=r"(old) : "l"(p), "r"(limit) : "memory");
    return old;
}
/// Makes this thread's writes, and those it has seen through barriers, visible to whoever acquires the sum.
SAPWOOD_DEVICE void atomic_add_release(u32* p, u32 value) {
    asm volatile("red.release.gpu.global.add.u32 [%0], %1;" ::"l"(p), "r"(value) : "memory");
}
SAPWOOD_DEVICE u32 load_acquire(const u32* p) {
    u32 v;
    asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(v) : "l"(p) : "memory");
    return v;
}
SAPWOOD_DEVICE u32 atomic_add_relaxed(u32* p, u32 value) {
    u32 old;
    asm volatile("atom.relaxed.gpu.global.add.u32 %0, [%1], %2;" : "=r"(old) : "l"(p), "r"(value) : "memory");
    return old;
}
/// *p = *p >= limit ? 0 : *p + 1; the old value. A counter that is where it began after limit + 1 draws.
SAPWOOD_DEVICE u32 atomic_inc_relaxed(u32* p, u32 limit) {
    u32 old;
    asm volatile("atom.relaxed.gpu.global.inc.u32 %0, [%1], %2;" : "=r"(old) : "l"(p), "r"(limit) : "memory");
    return old;
}

}  // namespace sapwood::kernel
