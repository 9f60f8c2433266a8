// SPDX-License-Identifier: Apache-2.0
// Every choice that changes the code of a kernel, as plain comparable bytes. The renderer sees nothing else, so nothing can be
// rendered that is not in the key.
#pragma once

#include <array>
#include <compare>
#include <cstdint>
#include <cstring>
#include <string>
#include <type_traits>

#include "sapwood/decode.h"
#include "sapwood/merge.h"
#include "sapwood/packed.h"

namespace sapwood {

enum class Family : std::uint8_t {
    decode = 1,
    merge = 2,
    packed_forward = 3,
    packed_backward = 4,
    backward_prepare = 5,
    backward_finish = 6,
    array_bounds = 7,
    forward_tiles = 8,
    backward_tiles = 9
};
const char* family_name(Family family) noexcept;  // what a key's text begins with

/// Score policies of templates/attention/score.h; the scale and the cap themselves are arguments.
enum class Score : std::uint8_t { scaled = 0, softcap = 1, negated = 2 };

struct KernelKey {
    std::uint8_t family = 0;
    std::uint8_t dtype = 0;
    std::uint8_t score = 0;      // Score
    std::uint8_t page_size = 0;  // tokens; 0 = contiguous
    std::uint16_t head_dim = 0, head_dim_v = 0;
    std::uint16_t group = 0;  // of a packed forward pass: query heads that share a block of rows, 0 if they do not
    std::uint16_t block_kv = 0;
    std::uint8_t warps = 0, producers = 0, stages = 0, blocks = 0;
    std::uint8_t mainloop = 0;      // Mainloop
    std::uint8_t mask = 0;          // 1: some keys are seen by some requests of their node alone; of a pack: it has arrays
    std::uint8_t out_dtype = 0;     // of a merge: StateDType, and so is its dtype
    std::uint8_t separate = 0;      // of a merge: 1: each part is a tensor of its own
    std::uint8_t kv_dtype = 0;      // KvDType
    std::uint8_t fixed_order = 0;   // of a backward pass: 1: sums are added up in the same order each time
    std::array<char, 10> target{};  // "sm_90a", "host"; zero padded

    bool operator==(const KernelKey& other) const { return std::memcmp(this, &other, sizeof(KernelKey)) == 0; }
    bool operator<(const KernelKey& other) const { return std::memcmp(this, &other, sizeof(KernelKey)) < 0; }

    /// Canonical text, the family first, e.g. "decode/bf16/d128/v128/g4/page1/cap0/mma/w8/p4/kv64/s6/b1/sm_90a".
    std::string to_string() const;
};
static_assert(std::has_unique_object_representations_v<KernelKey>);
static_assert(sizeof(KernelKey) == 32);

KernelKey decode_key(const DecodeProblem& problem, const DecodeConfig& config, const std::string& target);
/// `stages` is the number of 16-byte loads that a thread has in flight.
KernelKey merge_key(const MergeProblem& problem, const std::string& target);
/// What else changes the code of a pack's kernel.
struct PackTraits {
    bool arrays = false;       // of the pack
    bool fixed_order = false;  // of a backward pass
};
KernelKey packed_key(Family family, const PackedProblem& problem, const PackedConfig& config, const std::string& target,
                     const PackTraits& traits = {});
/// Of the kernels that make the tile lists of a pack with arrays: nothing changes their code.
KernelKey array_key(Family family, const std::string& target);

}  // namespace sapwood
