// SPDX-License-Identifier: Apache-2.0
// Plans that give one kernel the same work: measuring one of them is enough.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>

#include "sapwood/tune.h"

namespace sapwood::tune {

/// FNV-1a over vectors or arrays of whole 32-bit words, in their order.
template <class... Vectors>
std::uint64_t fingerprint(const Vectors&... vectors) {
    std::uint64_t h = 0xcbf29ce484222325u;
    const auto add = [&](const auto& vector) {
        const auto* bytes = reinterpret_cast<const unsigned char*>(vector.data());
        for (std::size_t i = 0; i < vector.size() * sizeof(vector[0]); i += 4) {
            std::uint32_t word;
            std::memcpy(&word, bytes + i, sizeof word);
            h = (h ^ word) * 0x100000001b3u;
        }
    };
    (add(vectors), ...);
    return h;
}

/// Drops candidate `which` if an earlier one that is still in the race has its kernel and its print; that one then stands for it.
void drop_same_plan(std::span<TuneCandidate> candidates, std::span<const std::uint64_t> prints, std::size_t which);

}  // namespace sapwood::tune
