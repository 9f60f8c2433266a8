// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>

namespace sapwood {

/// Element type of Q, K, V and O in memory (K and V unless KvDType says otherwise). Accumulation and LSE are always fp32;
/// what blocks hand to each other of a row that they share is rounded as O is.
enum class DType : std::uint8_t { fp16 = 1, bf16 = 2 };

const char* dtype_name(DType dtype) noexcept;
constexpr std::size_t dtype_bytes(DType) noexcept { return 2; }

/// Element type of K and V: that of Q, or fp8 with four exponent bits and three of mantissa (OCP E4M3: finite to 448, no
/// infinities, 0x7f and 0xff are NaN).
enum class KvDType : std::uint8_t { as_q = 0, e4m3 = 1 };

const char* kv_dtype_name(KvDType dtype) noexcept;  // "as_q", "fp8_e4m3"
constexpr std::size_t kv_dtype_bytes(KvDType kv, DType q) noexcept { return kv == KvDType::e4m3 ? 1 : dtype_bytes(q); }

}  // namespace sapwood
