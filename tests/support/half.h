// SPDX-License-Identifier: Apache-2.0
// fp16, bf16 and e4m3 as bit patterns, round to nearest even, in plain integer code: what tests compare with must not share code
// with what they test.
#pragma once

#include <bit>
#include <cstdint>

#include "sapwood/types.h"

namespace sapwood::support {

constexpr std::uint16_t to_bf16(float x) {
    const auto bits = std::bit_cast<std::uint32_t>(x);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<std::uint16_t>(bits >> 16 | 0x40);  // keep it a NaN
    return static_cast<std::uint16_t>((bits + 0x7fffu + (bits >> 16 & 1)) >> 16);
}

constexpr float from_bf16(std::uint16_t h) { return std::bit_cast<float>(static_cast<std::uint32_t>(h) << 16); }

constexpr std::uint16_t to_fp16(float x) {
    const auto bits = std::bit_cast<std::uint32_t>(x);
    const std::uint32_t sign = bits >> 16 & 0x8000u, magnitude = bits & 0x7fffffffu;
    if (magnitude > 0x7f800000u) return static_cast<std::uint16_t>(sign | 0x7e00u);   // NaN
    if (magnitude >= 0x477ff000u) return static_cast<std::uint16_t>(sign | 0x7c00u);  // 65520 and above round to infinity
    if (magnitude < 0x38800000u) {                                                    // below 2^-14: subnormal or zero
        if (magnitude <= 0x33000000u) return static_cast<std::uint16_t>(sign);        // 2^-25 is a tie: to even, zero
        const int shift = 126 - static_cast<int>(magnitude >> 23);                    // 14 … 24 bits fall off
        const std::uint32_t mantissa = (magnitude & 0x7fffffu) | 0x800000u;
        const std::uint32_t rest = mantissa & ((1u << shift) - 1), half = 1u << (shift - 1);
        std::uint32_t result = mantissa >> shift;
        if (rest > half || (rest == half && (result & 1))) ++result;
        return static_cast<std::uint16_t>(sign | result);
    }
    const std::uint32_t rounded = magnitude + 0xfffu + (magnitude >> 13 & 1);  // a carry into the exponent is right
    return static_cast<std::uint16_t>(sign | (rounded - 0x38000000u) >> 13);
}

constexpr float from_fp16(std::uint16_t h) {
    const std::uint32_t sign = static_cast<std::uint32_t>(h & 0x8000) << 16, exponent = h >> 10 & 31, mantissa = h & 0x3ff;
    if (exponent == 31) return std::bit_cast<float>(sign | 0x7f800000u | mantissa << 13);
    if (exponent != 0) return std::bit_cast<float>(sign | (exponent + 112) << 23 | mantissa << 13);
    const float magnitude = static_cast<float>(mantissa) * 0x1p-24f;
    return sign ? -magnitude : magnitude;
}

constexpr std::uint16_t round_to(DType dtype, float x) { return dtype == DType::fp16 ? to_fp16(x) : to_bf16(x); }
constexpr float widen(DType dtype, std::uint16_t h) { return dtype == DType::fp16 ? from_fp16(h) : from_bf16(h); }

/// fp8 with four exponent bits, bias 7, and three of mantissa: no infinities, finite to 448.
constexpr float from_e4m3(std::uint8_t byte) {
    const int exponent = byte >> 3 & 15, mantissa = byte & 7;
    if ((byte & 0x7f) == 0x7f) return std::bit_cast<float>(0x7fc00000u);
    const float power = std::bit_cast<float>(static_cast<std::uint32_t>((exponent == 0 ? 1 : exponent) + 120) << 23);
    const float magnitude = power * (static_cast<float>(mantissa) / 8 + (exponent == 0 ? 0.0f : 1.0f));
    return byte & 0x80 ? -magnitude : magnitude;
}
/// Nearest, ties to even; beyond 448 that, as the instruction's .satfinite does.
constexpr std::uint8_t to_e4m3(float x) {
    if (x != x) return 0x7f;
    const std::uint8_t sign = std::bit_cast<std::uint32_t>(x) >> 31 ? 0x80 : 0;
    const float magnitude = sign ? -x : x;
    int below = 0, above = 0x7e;  // bytes in order of their values
    if (magnitude >= from_e4m3(0x7e)) return sign | 0x7e;
    while (above - below > 1) {
        const int middle = (below + above) / 2;
        (from_e4m3(static_cast<std::uint8_t>(middle)) <= magnitude ? below : above) = middle;
    }
    const float down = magnitude - from_e4m3(static_cast<std::uint8_t>(below)),
                up = from_e4m3(static_cast<std::uint8_t>(above)) - magnitude;
    const int nearest = down < up || (down == up && below % 2 == 0) ? below : above;
    return static_cast<std::uint8_t>(sign | nearest);
}

/// A NaN in both 16-bit formats, and one in e4m3.
inline constexpr std::uint16_t kNan16 = 0x7fff;
inline constexpr std::uint8_t kNan8 = 0x7f;

}  // namespace sapwood::support
