// SPDX-License-Identifier: Apache-2.0
// What the device side of every plan begins with: places in one allocation, and the factors of the scores.
#pragma once

#include <cstddef>
#include <cstdint>

namespace sapwood {

/// Counts first, then places: offsets into an allocation of bytes(), each 256-byte aligned.
class Layout {
public:
    template <class T>
    std::size_t place(std::int64_t count) {
        const std::size_t at = bytes_;
        bytes_ += (static_cast<std::size_t>(count) * sizeof(T) + 255) / 256 * 256;
        return at;
    }
    std::size_t bytes() const { return bytes_; }

private:
    std::size_t bytes_ = 0;
};

/// Factors for the Score policies of templates/attention/score.h.
template <class Params, class Problem>
void set_score(Params& params, const Problem& problem) {
    constexpr float kLog2e = 1.4426950408889634f;
    params.scale_log2 = problem.softcap > 0 ? problem.scale / problem.softcap : problem.scale * kLog2e;
    params.softcap_log2 = problem.softcap * kLog2e;
}

}  // namespace sapwood
