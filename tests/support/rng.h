// SPDX-License-Identifier: Apache-2.0
// Counter-based random numbers of the workload files: 64-bit wrapping arithmetic, the same in every language.
#pragma once

#include <cstdint>
#include <vector>

namespace sapwood::support {

/// Which random sequence a number belongs to; the numbers are part of the workload format.
enum class Stream : std::uint64_t { pages = 0, request_order = 1, q = 2, k = 3, v = 4 };

inline constexpr std::uint64_t kGolden = 0x9E3779B97F4A7C15ull;

constexpr std::uint64_t mix(std::uint64_t z) {
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
    return z ^ (z >> 31);
}

/// One stream of one seed; operator() is random access, so any part of a tensor can be made alone.
class Rng {
public:
    constexpr Rng(std::uint64_t seed, Stream stream) : base_(mix(seed * kGolden + static_cast<std::uint64_t>(stream))) {}
    constexpr std::uint64_t operator()(std::uint64_t i) const { return mix(base_ + (i + 1) * kGolden); }

private:
    std::uint64_t base_;
};

constexpr std::uint64_t rnd(std::uint64_t seed, Stream stream, std::uint64_t i) { return Rng(seed, stream)(i); }

/// Sum of the four 16-bit quarters: one of only 262141 steps, so that rounded values can come from a table (inputs.cpp).
inline constexpr int kValueSteps = 4 * 65535 + 1;
constexpr int value_step(std::uint64_t r) {
    return static_cast<int>((r & 0xffff) + (r >> 16 & 0xffff) + (r >> 32 & 0xffff) + (r >> 48));
}
constexpr float value_of_step(int step) { return static_cast<float>(step - 131070) * 0x1.bb67acp-16f; }
/// About N(0, 1).
constexpr float value(std::uint64_t seed, Stream stream, std::uint64_t i) {
    return value_of_step(value_step(rnd(seed, stream, i)));
}

/// 0 … n-1, stably sorted by rnd >> 1.
std::vector<std::int32_t> perm(std::uint64_t seed, Stream stream, std::int64_t n);

}  // namespace sapwood::support
