// SPDX-License-Identifier: Apache-2.0
// fp16 and bf16 as bit patterns to and from fp32, round to nearest even, on any x86-64 and without a header.
#pragma once

#include "isa/types.h"

namespace sapwood::kernel {

typedef f32 HostF32x8 __attribute__((vector_size(32), may_alias));
typedef u32 HostU32x8 __attribute__((vector_size(32), may_alias));
typedef u16 HostU16x8 __attribute__((vector_size(16), may_alias));

inline u32 host_bits(f32 v) { return __builtin_bit_cast(u32, v); }
inline f32 host_f32(u32 v) { return __builtin_bit_cast(f32, v); }

inline u16 host_narrow(Bf16, f32 v) {
    const u32 u = host_bits(v);
    if ((u & 0x7fffffff) > 0x7f800000) return 0x7fff;  // the NaN that cvt.rn.bf16x2 gives
    return static_cast<u16>((u + 0x7fff + ((u >> 16) & 1)) >> 16);
}

inline u16 host_narrow(Fp16, f32 v) {
    const u32 sign = (host_bits(v) >> 16) & 0x8000;
    const u32 u = host_bits(v) & 0x7fffffff;
    if (u > 0x7f800000) return 0x7fff;
    if (u >= 0x47800000) return static_cast<u16>(sign | 0x7c00);  // 2^16 and above
    if (u < 0x38800000) {                                         // subnormal result: one addition rounds at the right place
        return static_cast<u16>(sign | (host_bits(host_f32(u) + 0.5f) - 0x3f000000));
    }
    return static_cast<u16>(sign | ((u - 0x38000000 + 0xfff + ((u >> 13) & 1)) >> 13));  // 65520 and above carry into infinity
}

/// The seven bits below the sign, placed in an fp32, are short of a factor 2^120, subnormals included.
inline f32 host_widen(E4m3 v) {
    if ((v.bits & 0x7f) == 0x7f) return host_f32(0x7fffffff);
    const f32 magnitude = host_f32(static_cast<u32>(v.bits & 0x7f) << 20) * 0x1p120f;
    return v.bits & 0x80 ? -magnitude : magnitude;
}

/// Eight values from `from`, 16-byte aligned, to `to`, 32-byte aligned. Exact. Pointers, not vectors: those would tie the calling
/// convention to the CPU level.
template <class T>
[[gnu::always_inline]] inline void host_widen8(const u16* from, f32* to);
template <>
[[gnu::always_inline]] inline void host_widen8<Bf16>(const u16* from, f32* to) {
    const HostU16x8 h = *reinterpret_cast<const HostU16x8*>(from);
    *reinterpret_cast<HostF32x8*>(to) = (HostF32x8)(__builtin_convertvector(h, HostU32x8) << 16);
}
template <>
[[gnu::always_inline]] inline void host_widen8<Fp16>(const u16* from, f32* to) {
    const HostU32x8 h = __builtin_convertvector(*reinterpret_cast<const HostU16x8*>(from), HostU32x8);
    const HostU32x8 magnitude = (h & 0x7fff) << 13;
    const HostU32x8 scaled = (HostU32x8)((HostF32x8)magnitude * 0x1p112f);  // rebias; subnormals become normal
    const HostU32x8 special = (HostU32x8)(magnitude >= 0x0f800000) & 0x7f800000;
    *reinterpret_cast<HostF32x8*>(to) = (HostF32x8)(scaled | special | ((h & 0x8000) << 16));
}

}  // namespace sapwood::kernel
