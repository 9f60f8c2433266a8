// SPDX-License-Identifier: Apache-2.0
// Plain C++ bodies of what touches global memory.
#pragma once

#include "isa/host.h"

namespace sapwood::kernel {

template <class T, class P>
SAPWOOD_DEVICE T* host_global(P* p, u32 bytes) {
    if (reinterpret_cast<u64>(p) % bytes != 0) [[unlikely]] {
        host_fail("misaligned global pointer", reinterpret_cast<u64>(p), bytes);
    }
    return reinterpret_cast<T*>(p);
}
/// Read-only for the whole kernel: may go through the non-coherent path.
SAPWOOD_DEVICE U32x4 load_readonly_16(const void* p) {
    U32x4 v;
    __builtin_memcpy(&v, host_global<const u8>(p, 16), 16);
    return v;
}
SAPWOOD_DEVICE u32 load_readonly_4(const void* p) {
    u32 v;
    __builtin_memcpy(&v, host_global<const u8>(p, 4), 4);
    return v;
}
SAPWOOD_DEVICE u64 load_readonly_8(const void* p) {
    u64 v;
    __builtin_memcpy(&v, host_global<const u8>(p, 8), 8);
    return v;
}
/// What a kernel before this one may still have been writing when this one began.
SAPWOOD_DEVICE u32 load_earlier_4(const void* p) { return load_readonly_4(p); }
SAPWOOD_DEVICE U32x2 load_earlier_8(const void* p) {
    const u64 v = load_readonly_8(p);
    return {static_cast<u32>(v), static_cast<u32>(v >> 32)};
}
SAPWOOD_DEVICE U32x4 load_earlier_16(const void* p) { return load_readonly_16(p); }
/// From L2, never L1: for data that other blocks of the same kernel have written.
SAPWOOD_DEVICE U32x2 load_shared_by_blocks_8(const void* p) {
    U32x2 v;
    __builtin_memcpy(&v, host_global<const u8>(p, 8), 8);
    return v;
}
SAPWOOD_DEVICE f32 load_shared_by_blocks(const f32* p) { return *host_global<const volatile f32>(p, 4); }
/// Of memory that this kernel may write later, each address by the thread that has read it.
SAPWOOD_DEVICE U32x4 load_once_16(const void* p) {
    U32x4 v;
    __builtin_memcpy(&v, host_global<const u8>(p, 16), 16);
    return v;
}
SAPWOOD_DEVICE f32 load_f32(const f32* p) { return *host_global<const f32>(p, 4); }
SAPWOOD_DEVICE void store_4(void* p, u32 v) { __builtin_memcpy(host_global<u8>(p, 4), &v, 4); }
SAPWOOD_DEVICE void store_8(void* p, u32 a, u32 b) {
    const u32 v[2] = {a, b};
    __builtin_memcpy(host_global<u8>(p, 8), v, 8);
}
SAPWOOD_DEVICE void store_16(void* p, u32 a, u32 b, u32 c, u32 d) {
    const u32 v[4] = {a, b, c, d};
    __builtin_memcpy(host_global<u8>(p, 16), v, 16);
}
SAPWOOD_DEVICE void store_f32(f32* p, f32 v) { __builtin_memcpy(host_global<u8>(p, 4), &v, 4); }

inline void host_reduce_add(f32* global, f32 value) {
    u32* to = reinterpret_cast<u32*>(global);
    u32 old = __atomic_load_n(to, __ATOMIC_RELAXED);
    while (!__atomic_compare_exchange_n(to, &old, host_bits(host_f32(old) + value), true, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {}
}
/// Sums lie as on SM 9.0.
SAPWOOD_DEVICE void add_accumulators(f32* sums, const f32 (&d)[4]) {
    f32* to = host_global<f32>(sums + lane_id() * 4, 16);
    for (u32 i = 0; i < 4; ++i) host_reduce_add(to + i, d[i]);
}
SAPWOOD_DEVICE void load_accumulators(const f32* sums, f32 (&d)[4]) {
    __builtin_memcpy(d, host_global<const u8>(sums + lane_id() * 4, 16), 16);
}

inline u32 host_atomic_inc(u32* p, u32 limit, int order) {
    HostThread* self = host_self();
    self->block->runtime->breathe(self);
    u32* counter = host_global<u32>(p, 4);
    u32 old = __atomic_load_n(counter, __ATOMIC_RELAXED);
    while (!__atomic_compare_exchange_n(counter, &old, old >= limit ? 0 : old + 1, true, order, __ATOMIC_RELAXED)) {}
    return old;
}
/// *p = (*p >= limit) ? 0 : *p + 1, acquire and release at GPU scope; returns the old value. Self-resetting arrival counter.
SAPWOOD_DEVICE u32 atomic_inc_acq_rel(u32* p, u32 limit) { return host_atomic_inc(p, limit, __ATOMIC_ACQ_REL); }
SAPWOOD_DEVICE void atomic_add_release(u32* p, u32 value) {
    HostThread* self = host_self();
    self->block->runtime->breathe(self);
    __atomic_fetch_add(host_global<u32>(p, 4), value, __ATOMIC_RELEASE);
}
/// May be polled in a loop for what other blocks do; see Block::poll in lib/host.
SAPWOOD_DEVICE u32 load_acquire(const u32* p) {
    HostThread* self = host_self();
    return self->block->runtime->poll(self, host_global<const u32>(p, 4));
}
SAPWOOD_DEVICE u32 atomic_add_relaxed(u32* p, u32 value) {
    HostThread* self = host_self();
    self->block->runtime->breathe(self);
    return __atomic_fetch_add(host_global<u32>(p, 4), value, __ATOMIC_RELAXED);
}
SAPWOOD_DEVICE u32 atomic_inc_relaxed(u32* p, u32 limit) { return host_atomic_inc(p, limit, __ATOMIC_RELAXED); }

}  // namespace sapwood::kernel
