// SPDX-License-Identifier: Apache-2.0
#pragma once

namespace sapwood::kernel {

using u8 = unsigned char;
using u16 = unsigned short;
using u32 = unsigned int;
using u64 = unsigned long long;
using i32 = int;
using i64 = long long;
using f32 = float;

/// Storage types are bit patterns; the tags pick conversions and mma forms.
struct Fp16 {
    u16 bits;
};
struct Bf16 {
    u16 bits;
};
struct Fp32 {
    u32 bits;
};
/// Four exponent bits and three of mantissa, no infinities: up to 448, down to 2^-9.
struct E4m3 {
    u8 bits;
};

struct alignas(8) U32x2 {
    u32 x, y;
};
struct alignas(16) U32x4 {
    u32 x, y, z, w;
};
struct alignas(16) F32x4 {
    f32 x, y, z, w;
};

inline constexpr f32 kLog2E = 1.4426950408889634f;
inline constexpr f32 kLn2 = 0.6931471805599453f;

template <bool kFirst, class A, class B>
struct Select {
    using Type = A;
};
template <class A, class B>
struct Select<false, A, B> {
    using Type = B;
};

}  // namespace sapwood::kernel
