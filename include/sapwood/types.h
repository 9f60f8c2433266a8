// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>

namespace sapwood {

/// Element type of Q, K, V and O in memory. Accumulation, partial results and LSE are always fp32.
enum class DType : std::uint8_t { fp16 = 1, bf16 = 2 };

const char* dtype_name(DType dtype) noexcept;
constexpr std::size_t dtype_bytes(DType) noexcept { return 2; }

}  // namespace sapwood
