// SPDX-License-Identifier: Apache-2.0
// Inline-PTX bodies, PTX ISA 7.0 and later, sm_80 and later.
#pragma once

#include "isa/types.h"

#define SAPWOOD_DEVICE __device__ __forceinline__
#define SAPWOOD_UNROLL _Pragma("unroll")
#define SAPWOOD_NO_UNROLL _Pragma("unroll 1")
/// Defines the entry point: one block of `threads` threads, at least `blocks` of them resident on an SM, one by-value argument.
#define SAPWOOD_ENTRY(name, Params, threads, blocks) \
    extern "C" __global__ void __launch_bounds__(threads, blocks) name(const __grid_constant__ Params params)

namespace sapwood::kernel {

// --- who and where -------------------------------------------------------------------------------------------------
SAPWOOD_DEVICE u32 thread_id() { return threadIdx.x; }
SAPWOOD_DEVICE u32 block_id() { return blockIdx.x; }
SAPWOOD_DEVICE u32 grid_size() { return gridDim.x; }
SAPWOOD_DEVICE u32 lane_id() { return threadIdx.x & 31; }
/// Warp-uniform in the compiler's eyes too, so that branches on it are not divergent.
SAPWOOD_DEVICE u32 warp_id() { return __shfl_sync(~0u, threadIdx.x >> 5, 0); }

/// Base of the block's dynamic shared memory, 1024-byte aligned when the kernel has no static shared memory.
SAPWOOD_DEVICE u8* shared_memory() {
    extern __shared__ __align__(1024) u8 sapwood_shared[];
    return sapwood_shared;
}
/// 32-bit shared-space address of a pointer into shared memory: what every function below named `shared` takes.
SAPWOOD_DEVICE u32 shared_address(const void* pointer) {
    u32 address;
    asm("{ .reg .u64 t; cvta.to.shared.u64 t, %1; cvt.u32.u64 %0, t; }" : "=r"(address) : "l"(pointer));
    return address;
}

// --- barriers --------------------------------------------------------------------------------------------------------
SAPWOOD_DEVICE void block_sync() { __syncthreads(); }
SAPWOOD_DEVICE void warp_sync() { __syncwarp(); }
/// Barrier `id` (1..15) among `threads` threads (whole warps) of the block; orders their shared and global accesses.
SAPWOOD_DEVICE void named_sync(u32 id, u32 threads) { asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory"); }

/// Moves registers between warpgroups (four warps that start at a multiple of four): every warp of one calls it with the same
/// count. The kernel must have been launched with the registers that the sum comes to. No effect before sm_90a.
#if defined(__CUDA_ARCH_FEAT_SM90_ALL) || defined(__CUDA_ARCH_FEAT_SM100_ALL) || defined(__CUDA_ARCH_FEAT_SM103_ALL)
inline constexpr bool kRegistersMove = true;
#else
inline constexpr bool kRegistersMove = false;
#endif
template <u32 kCount>
SAPWOOD_DEVICE void registers_release() {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL) || defined(__CUDA_ARCH_FEAT_SM100_ALL) || defined(__CUDA_ARCH_FEAT_SM103_ALL)
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kCount));
#endif
}
template <u32 kCount>
SAPWOOD_DEVICE void registers_take() {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL) || defined(__CUDA_ARCH_FEAT_SM100_ALL) || defined(__CUDA_ARCH_FEAT_SM103_ALL)
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kCount));
#endif
}

/// Programmatic dependent launch. The kernel behind this one on the stream may start once every block has called this or ended …
SAPWOOD_DEVICE void let_later_kernels_start() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}
/// … and must call this before it touches what kernels before it may read or write: returns when all of them have ended, their
/// writes visible. Returns at once in a kernel that was launched without overlap.
SAPWOOD_DEVICE void wait_for_earlier_kernels() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

SAPWOOD_DEVICE void mbarrier_init(u32 shared, u32 arrivals) {
    asm volatile("mbarrier.init.shared.b64 [%0], %1;" ::"r"(shared), "r"(arrivals) : "memory");
}
SAPWOOD_DEVICE void mbarrier_arrive(u32 shared) {
    asm volatile("{ .reg .b64 t; mbarrier.arrive.shared.b64 t, [%0]; }" ::"r"(shared) : "memory");
}
SAPWOOD_DEVICE bool mbarrier_try(u32 shared, u32 parity) {
    u32 done;
#if __CUDA_ARCH__ >= 900
    asm volatile("{ .reg .pred p; mbarrier.try_wait.parity.shared.b64 p, [%1], %2; selp.u32 %0, 1, 0, p; }"
                 : "=r"(done)
                 : "r"(shared), "r"(parity)
                 : "memory");
#else
    asm volatile("{ .reg .pred p; mbarrier.test_wait.parity.shared.b64 p, [%1], %2; selp.u32 %0, 1, 0, p; }"
                 : "=r"(done)
                 : "r"(shared), "r"(parity)
                 : "memory");
#endif
    return done != 0;
}
/// Waits for the completion of the phase with this parity. A fresh barrier passes parity 1 at once.
SAPWOOD_DEVICE void mbarrier_wait(u32 shared, u32 parity) {
    while (!mbarrier_try(shared, parity)) {}
}

/// The compiler takes the pointer as it is, instead of adding its terms to each offset from it one by one.
SAPWOOD_DEVICE const u8* as_one_value(const u8* pointer) {
    asm volatile("" : "+l"(pointer));
    return pointer;
}

// --- asynchronous copies -----------------------------------------------------------------------------------------------
/// 16 bytes global to shared, bypassing L1; the last 16 - `bytes` are zeros (`bytes` is 0 or 16; nothing is read for 0).
SAPWOOD_DEVICE void cp_async_16(u32 shared, const void* global, u32 bytes) {
    asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(shared), "l"(global), "r"(bytes) : "memory");
}
/// 4 bytes global to shared, by way of L1.
SAPWOOD_DEVICE void cp_async_4(u32 shared, const void* global) {
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" ::"r"(shared), "l"(global) : "memory");
}
/// Arrives on `mbarrier` when all earlier cp_async of this thread have landed; the barrier's count includes this arrival.
SAPWOOD_DEVICE void cp_async_arrive(u32 mbarrier) {
    asm volatile("cp.async.mbarrier.arrive.noinc.shared.b64 [%0];" ::"r"(mbarrier) : "memory");
}

// --- warp collectives ----------------------------------------------------------------------------------------------------
SAPWOOD_DEVICE f32 shfl_xor(f32 value, u32 mask) { return __shfl_xor_sync(~0u, value, mask); }
SAPWOOD_DEVICE u32 shfl(u32 value, u32 lane) { return __shfl_sync(~0u, value, lane); }
SAPWOOD_DEVICE bool warp_any(bool value) { return __any_sync(~0u, value); }
SAPWOOD_DEVICE u32 lowest_bit(u32 bits) { return static_cast<u32>(__ffs(static_cast<int>(bits))) - 1; }  // of a word that has one
SAPWOOD_DEVICE u32 warp_ballot(bool value) { return __ballot_sync(~0u, value); }                         // bit l: lane l's

/// Four 8x8 matrices of 16-bit elements; lane l gives the address of row l%8 of matrix l/8.
SAPWOOD_DEVICE void ldmatrix_x4(u32 (&r)[4], u32 shared) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared)
                 : "memory");
}
SAPWOOD_DEVICE void ldmatrix_x4_trans(u32 (&r)[4], u32 shared) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared)
                 : "memory");
}

/// d += a (16x16, row) * b (16x8, col), fp32 accumulation. Layouts: PTX ISA, mma.m16n8k16.
template <class T>
SAPWOOD_DEVICE void mma_16x8x16(f32 (&d)[4], const u32 (&a)[4], u32 b0, u32 b1);
template <>
SAPWOOD_DEVICE void mma_16x8x16<Fp16>(f32 (&d)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
template <>
SAPWOOD_DEVICE void mma_16x8x16<Bf16>(f32 (&d)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// --- arithmetic ------------------------------------------------------------------------------------------------------------
/// Two fp32 to two 16-bit values, round to nearest even; `low` in the low half.
template <class T>
SAPWOOD_DEVICE u32 pack2(f32 low, f32 high);
template <>
SAPWOOD_DEVICE u32 pack2<Fp16>(f32 low, f32 high) {
    u32 r;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
    return r;
}
template <>
SAPWOOD_DEVICE u32 pack2<Bf16>(f32 low, f32 high) {
    u32 r;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
    return r;
}
/// And back, exactly.
template <class T>
SAPWOOD_DEVICE void unpack2(u32 packed, f32& low, f32& high);
template <>
SAPWOOD_DEVICE void unpack2<Fp16>(u32 packed, f32& low, f32& high) {
    asm("{ .reg .b16 l, h; mov.b32 {l, h}, %2; cvt.f32.f16 %0, l; cvt.f32.f16 %1, h; }" : "=f"(low), "=f"(high) : "r"(packed));
}
template <>
SAPWOOD_DEVICE void unpack2<Bf16>(u32 packed, f32& low, f32& high) {
    low = __uint_as_float(packed << 16);
    high = __uint_as_float(packed & 0xffff0000u);
}
/// Bytes 0, 2, 1, 3.
SAPWOOD_DEVICE u32 even_then_odd_bytes(u32 bytes) { return __byte_perm(bytes, 0, 0x3120); }
/// Four e4m3 to T, bytes 0 and 1 in `low`, 2 and 3 in `high`. Finite values exactly; what becomes of a NaN is left open.
template <class T>
SAPWOOD_DEVICE void widen_e4m3(u32 bytes, u32& low, u32& high);
/// Sign and the other seven bits where two values of the wider format have them, in a word whose bytes 1 and 3 are e4m3: short of a
/// factor that is the difference of the exponents' biases, subnormals included.
template <u32 kShift, u32 kMask>
SAPWOOD_DEVICE u32 place_e4m3(u32 spread) {
    return (spread & 0x80008000u) | ((spread >> kShift) & kMask);
}
template <>
SAPWOOD_DEVICE void widen_e4m3<Fp16>(u32 bytes, u32& low, u32& high) {
    // The instruction is there from SM 8.9 on; for that one, PTX ISA 8.1 is the first to say so.
#if __CUDA_ARCH__ >= 900 || (__CUDA_ARCH__ >= 890 && __CUDACC_VER_MAJOR__ * 100 + __CUDACC_VER_MINOR__ >= 1201)
    asm("{ .reg .b16 l, h; mov.b32 {l, h}, %2; cvt.rn.f16x2.e4m3x2 %0, l; cvt.rn.f16x2.e4m3x2 %1, h; }"
        : "=r"(low), "=r"(high)
        : "r"(bytes));
#else
    low = place_e4m3<1, 0x3f803f80>(__byte_perm(bytes, 0, 0x1404));
    high = place_e4m3<1, 0x3f803f80>(__byte_perm(bytes, 0, 0x3424));
    asm("mul.f16x2 %0, %0, %1;" : "+r"(low) : "r"(0x5c005c00));  // 2^8
    asm("mul.f16x2 %0, %0, %1;" : "+r"(high) : "r"(0x5c005c00));
#endif
}
template <>
SAPWOOD_DEVICE void widen_e4m3<Bf16>(u32 bytes, u32& low, u32& high) {
    low = place_e4m3<4, 0x07f007f0>(__byte_perm(bytes, 0, 0x1404));
    high = place_e4m3<4, 0x07f007f0>(__byte_perm(bytes, 0, 0x3424));
    // 2^120. bf16 has no plain multiplication before SM 9.0; adding -0 keeps the sign of a zero.
    asm("fma.rn.bf16x2 %0, %0, %1, %2;" : "+r"(low) : "r"(0x7b807b80), "r"(0x80008000));
    asm("fma.rn.bf16x2 %0, %0, %1, %2;" : "+r"(high) : "r"(0x7b807b80), "r"(0x80008000));
}
SAPWOOD_DEVICE f32 infinity() { return __int_as_float(0x7f800000); }
SAPWOOD_DEVICE f32 exp2_approx(f32 x) {  // relative error < 2^-22; 2^-inf = 0
    f32 r;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(x));
    return r;
}
SAPWOOD_DEVICE f32 log2_approx(f32 x) {  // of a normal number
    f32 r;
    asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(x));
    return r;
}
SAPWOOD_DEVICE f32 reciprocal(f32 x) {
    f32 r;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(x));
    return r;
}
SAPWOOD_DEVICE f32 max_f32(f32 a, f32 b) { return fmaxf(a, b); }
SAPWOOD_DEVICE u32 min_u32(u32 a, u32 b) { return a < b ? a : b; }
SAPWOOD_DEVICE u32 leading_zeros(u32 x) { return static_cast<u32>(__clz(static_cast<int>(x))); }  // of 0: 32
SAPWOOD_DEVICE f32 fma_f32(f32 a, f32 b, f32 c) { return __fmaf_rn(a, b, c); }

}  // namespace sapwood::kernel
