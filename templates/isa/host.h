// SPDX-License-Identifier: Apache-2.0
// Plain C++ bodies, one fiber a CUDA thread (lib/host runs them). Signatures, lane-to-element mapping and roundings are those of
// cuda.h; alignment and shared-memory bounds are checked, and asynchronous copies land late on purpose.
#pragma once

#include "isa/host_convert.h"
#include "isa/host_runtime.h"
#include "isa/host_warp.h"
#include "isa/types.h"

#define SAPWOOD_DEVICE inline
#define SAPWOOD_UNROLL
#define SAPWOOD_NO_UNROLL
/// Defines the entry point: the symbol `name` is a HostEntry, its `run` executes the body as one CUDA thread.
#define SAPWOOD_ENTRY(name, Params, threads, blocks)                                                  \
    static void name##_thread(const Params& params);                                                  \
    extern "C" {                                                                                      \
    __attribute__((visibility("default"))) extern const ::sapwood::kernel::HostEntry name;            \
    }                                                                                                 \
    const ::sapwood::kernel::HostEntry name = ::sapwood::kernel::host_entry<Params, threads, blocks>( \
        [](const void* params) { name##_thread(*static_cast<const Params*>(params)); });              \
    static void name##_thread([[maybe_unused]] const Params& params)

namespace sapwood::kernel {

// --- who and where -------------------------------------------------------------------------------------------------
SAPWOOD_DEVICE u32 thread_id() { return host_self()->thread; }
SAPWOOD_DEVICE u32 block_id() { return host_self()->block->block; }
SAPWOOD_DEVICE u32 grid_size() { return host_self()->block->grid; }
SAPWOOD_DEVICE u32 lane_id() { return host_self()->lane; }
/// No collective here, although it is one in cuda.h: nothing is exchanged.
SAPWOOD_DEVICE u32 warp_id() { return host_self()->thread >> 5; }

SAPWOOD_DEVICE u8* shared_memory() { return host_self()->block->shared + kHostSharedStart; }
SAPWOOD_DEVICE u32 shared_address(const void* pointer) {
    const HostBlock* block = host_self()->block;
    const u64 offset = reinterpret_cast<u64>(pointer) - reinterpret_cast<u64>(block->shared);
    if (offset < kHostSharedStart || offset > block->shared_end) [[unlikely]] {  // one past the end may be formed, not used
        host_fail("shared_address of a pointer outside the block's dynamic shared memory", offset, block->shared_end);
    }
    return static_cast<u32>(offset);
}

// --- barriers --------------------------------------------------------------------------------------------------------
SAPWOOD_DEVICE void block_sync() {
    HostThread* self = host_self();
    self->block->runtime->barrier(self, 0, self->block->threads);
}
SAPWOOD_DEVICE void warp_sync() { host_meet(host_self(), kHostSync); }
/// Barrier `id` (1..15) among `threads` threads (whole warps) of the block; orders their shared and global accesses.
SAPWOOD_DEVICE void named_sync(u32 id, u32 threads) {
    HostThread* self = host_self();
    if (id == 0 || id > 15) [[unlikely]]
        host_fail("named_sync: barrier id outside 1..15", id, 15);
    self->block->runtime->barrier(self, id, threads);
}

/// Registers are not a thing that the host can move; what depends on it is as on an SM that can.
inline constexpr bool kRegistersMove = true;
template <u32 kCount>
SAPWOOD_DEVICE void registers_release() {}
template <u32 kCount>
SAPWOOD_DEVICE void registers_take() {}

/// Launches run to completion here.
SAPWOOD_DEVICE void let_later_kernels_start() {}
SAPWOOD_DEVICE void wait_for_earlier_kernels() {}

SAPWOOD_DEVICE void mbarrier_init(u32 shared, u32 arrivals) {
    HostThread* self = host_self();
    self->block->runtime->mbarrier_init(self, shared, arrivals);
}
SAPWOOD_DEVICE void mbarrier_arrive(u32 shared) {
    HostThread* self = host_self();
    self->block->runtime->mbarrier_arrive(self, shared);
}
SAPWOOD_DEVICE bool mbarrier_try(u32 shared, u32 parity) {
    HostThread* self = host_self();
    return self->block->runtime->mbarrier_try(self, shared, parity);
}
/// Waits for the completion of the phase with this parity. A fresh barrier passes parity 1 at once.
SAPWOOD_DEVICE void mbarrier_wait(u32 shared, u32 parity) {
    HostThread* self = host_self();
    self->block->runtime->mbarrier_wait(self, shared, parity);
}

// --- asynchronous copies -----------------------------------------------------------------------------------------------
/// 16 bytes global to shared, bypassing L1; the last 16 - `bytes` are zeros (`bytes` is 0 or 16; nothing is read for 0).
SAPWOOD_DEVICE void cp_async_16(u32 shared, const void* global, u32 bytes) {
    HostThread* self = host_self();
    if (bytes != 0 && reinterpret_cast<u64>(global) % 16 != 0) [[unlikely]] {
        host_fail("cp_async_16: misaligned global pointer", reinterpret_cast<u64>(global), 16);
    }
#if defined(SAPWOOD_HOST_ASAN)
    if (bytes != 0) (void)*static_cast<const volatile u64*>(global);  // a bad source is reported here, not where it lands
#endif
    self->block->runtime->cp_async_16(self, shared, global, bytes);
}
/// 4 bytes global to shared, by way of L1.
SAPWOOD_DEVICE void cp_async_4(u32 shared, const void* global) {
    HostThread* self = host_self();
    if (reinterpret_cast<u64>(global) % 4 != 0) [[unlikely]] {
        host_fail("cp_async_4: misaligned global pointer", reinterpret_cast<u64>(global), 4);
    }
#if defined(SAPWOOD_HOST_ASAN)
    (void)*static_cast<const volatile u32*>(global);
#endif
    self->block->runtime->cp_async_4(self, shared, global);
}
/// Arrives on `mbarrier` when all earlier cp_async of this thread have landed; the barrier's count includes this arrival.
SAPWOOD_DEVICE void cp_async_arrive(u32 mbarrier) {
    HostThread* self = host_self();
    self->block->runtime->cp_async_arrive(self, mbarrier);
}

// --- warp collectives ----------------------------------------------------------------------------------------------------
SAPWOOD_DEVICE f32 shfl_xor(f32 value, u32 mask) {
    HostThread* self = host_self();
    self->warp->in[self->lane] = host_bits(value);
    host_meet(self, kHostShflXor);
    return host_f32(self->warp->out[(self->lane ^ mask) & 31]);
}
SAPWOOD_DEVICE u32 shfl(u32 value, u32 lane) {
    HostThread* self = host_self();
    self->warp->in[self->lane] = value;
    host_meet(self, kHostShfl);
    return self->warp->out[lane & 31];
}
SAPWOOD_DEVICE bool warp_any(bool value) {
    HostThread* self = host_self();
    self->warp->in[self->lane] = value;
    host_meet(self, kHostAny);
    return self->warp->out[self->lane] != 0;
}
SAPWOOD_DEVICE u32 lowest_bit(u32 bits) { return static_cast<u32>(__builtin_ctz(bits)); }
SAPWOOD_DEVICE u32 warp_ballot(bool value) {
    HostThread* self = host_self();
    self->warp->in[self->lane] = value;
    host_meet(self, kHostBallot);
    return self->warp->out[self->lane];
}

/// Four 8x8 matrices of 16-bit elements; lane l gives the address of row l%8 of matrix l/8.
SAPWOOD_DEVICE void ldmatrix_x4(u32 (&r)[4], u32 shared) { host_ldmatrix<false>(r, shared); }
SAPWOOD_DEVICE void ldmatrix_x4_trans(u32 (&r)[4], u32 shared) { host_ldmatrix<true>(r, shared); }

/// d += a (16x16, row) * b (16x8, col), fp32 accumulation. Layouts: PTX ISA, mma.m16n8k16.
template <class T>
SAPWOOD_DEVICE void mma_16x8x16(f32 (&d)[4], const u32 (&a)[4], u32 b0, u32 b1);
template <>
SAPWOOD_DEVICE void mma_16x8x16<Fp16>(f32 (&d)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    host_mma<Fp16>(d, a, b0, b1);
}
template <>
SAPWOOD_DEVICE void mma_16x8x16<Bf16>(f32 (&d)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    host_mma<Bf16>(d, a, b0, b1);
}

// --- arithmetic ------------------------------------------------------------------------------------------------------------
/// Two fp32 to two 16-bit values, round to nearest even; `low` in the low half.
template <class T>
SAPWOOD_DEVICE u32 pack2(f32 low, f32 high);
template <>
SAPWOOD_DEVICE u32 pack2<Fp16>(f32 low, f32 high) {
    return host_narrow(Fp16{}, low) | static_cast<u32>(host_narrow(Fp16{}, high)) << 16;
}
template <>
SAPWOOD_DEVICE u32 pack2<Bf16>(f32 low, f32 high) {
    return host_narrow(Bf16{}, low) | static_cast<u32>(host_narrow(Bf16{}, high)) << 16;
}
/// And back, exactly.
template <class T>
SAPWOOD_DEVICE void unpack2(u32 packed, f32& low, f32& high) {
    alignas(16) u16 from[8] = {static_cast<u16>(packed), static_cast<u16>(packed >> 16)};
    alignas(32) f32 to[8];
    host_widen8<T>(from, to);
    low = to[0], high = to[1];
}
/// Bytes 0, 2, 1, 3.
SAPWOOD_DEVICE u32 even_then_odd_bytes(u32 bytes) {
    return (bytes & 0xff0000ffu) | (bytes >> 8 & 0x0000ff00u) | (bytes << 8 & 0x00ff0000u);
}
/// Four e4m3 to T, bytes 0 and 1 in `low`, 2 and 3 in `high`. Exact; here a NaN stays one.
template <class T>
SAPWOOD_DEVICE void widen_e4m3(u32 bytes, u32& low, u32& high) {
    const auto pair = [bytes](u32 shift) {
        return pack2<T>(host_widen(E4m3{static_cast<u8>(bytes >> shift)}), host_widen(E4m3{static_cast<u8>(bytes >> (shift + 8))}));
    };
    low = pair(0), high = pair(16);
}
SAPWOOD_DEVICE f32 infinity() { return __builtin_inff(); }
/// What .ftz does: subnormal to zero of the same sign.
SAPWOOD_DEVICE f32 host_flush(f32 x) { return __builtin_fabsf(x) < 0x1p-126f ? __builtin_copysignf(0.0f, x) : x; }
SAPWOOD_DEVICE f32 exp2_approx(f32 x) { return host_flush(__builtin_exp2f(x)); }
SAPWOOD_DEVICE f32 log2_approx(f32 x) { return __builtin_log2f(x); }
SAPWOOD_DEVICE f32 reciprocal(f32 x) {
    const f32 y = host_flush(x);
    return y == 0.0f ? __builtin_copysignf(__builtin_inff(), y) : host_flush(1.0f / y);  // no division by zero for UBSan to mind
}
SAPWOOD_DEVICE f32 max_f32(f32 a, f32 b) {
    if (a == b) return host_f32(host_bits(a) & host_bits(b));  // +0 is above -0
    return a > b || b != b ? a : b;                            // a NaN loses
}
SAPWOOD_DEVICE const u8* as_one_value(const u8* pointer) { return pointer; }
SAPWOOD_DEVICE u32 min_u32(u32 a, u32 b) { return a < b ? a : b; }
SAPWOOD_DEVICE u32 leading_zeros(u32 x) { return x == 0 ? 32 : static_cast<u32>(__builtin_clz(x)); }
SAPWOOD_DEVICE f32 fma_f32(f32 a, f32 b, f32 c) { return __builtin_fmaf(a, b, c); }
SAPWOOD_DEVICE u32 f32_bits(f32 v) { return host_bits(v); }
SAPWOOD_DEVICE f32 bits_f32(u32 v) { return host_f32(v); }

}  // namespace sapwood::kernel
