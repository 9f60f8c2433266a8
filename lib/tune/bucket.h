// SPDX-License-Identifier: Apache-2.0
// From a problem and its forest or pack to the bucket that a tuning record is kept under. What changes code or legality is taken
// exactly, sizes in half octaves. A change here is another kBucketVersion, so that old records are not read as new ones.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>

#include "kernel/key.h"
#include "plan/order.h"
#include "sapwood/decode.h"
#include "sapwood/packed.h"

namespace sapwood::tune {

inline constexpr std::uint8_t kBucketVersion = 1;

/// The sizes of one call, exactly: recorded with every measurement. In a pack each query row is what a request is in a forest.
struct Sizes {
    std::int64_t kv_heads = 0, page_size = 0;
    std::int64_t requests = 0;       // that see a token; of a pack: rows of Q
    std::int64_t unique_tokens = 0;  // on some request's path; of a pack: rows of K and V
    std::int64_t path_tokens = 0;    // summed over the requests; of a pack: visible pairs
    std::int64_t widest = 0;         // most requests that share a token; of a pack: 0, it is not counted
    std::int64_t longest = 0;        // tokens of the longest path; of a pack: of a run of keys (KeyRun), on average
    bool operator==(const Sizes&) const = default;
    auto operator<=>(const Sizes&) const = default;
};

Sizes sizes_of(const DecodeProblem& problem, const ForestOrder& order);
Sizes sizes_of(const PackedProblem& problem, const Pack& pack);
Sizes sizes_of(const PackedProblem& problem, std::int64_t rows, std::int64_t keys, std::int64_t visible_pairs, std::int64_t runs);

/// How a kernel finds its keys: page sizes above one differ in a shift only.
enum class PageKind : std::uint8_t { contiguous, token, pages };

struct Bucket {
    std::uint8_t version = kBucketVersion;
    std::uint8_t family = static_cast<std::uint8_t>(Family::decode);  // or packed_forward, packed_backward
    std::uint8_t dtype = 0;
    std::uint8_t kv_dtype = 0;  // KvDType; the text has it where it is not that of Q
    std::uint8_t score = 0;     // Score of kernel/key.h
    bool mask = false;          // drafts with masks; the text has it where they are
    std::uint8_t pages = 0;     // PageKind
    std::uint16_t head_dim = 0, head_dim_v = 0, group = 0;
    // Half octaves: 0 for nothing, else 1 + round(2 * log2(value)).
    std::uint8_t kv_heads = 0, requests = 0, unique = 0, sharing = 0, widest = 0, longest = 0;

    bool operator==(const Bucket&) const = default;
    auto operator<=>(const Bucket&) const = default;
    /// "decode/b1/fp16/d128/v128/g4/token/scaled/h8/r1024/u23170/x23/w1024/l512"; each size is the middle of its half octave.
    std::string to_string() const;
};

std::uint8_t half_octave(double value);
double middle_of(std::uint8_t half_octave);

Bucket bucket_of(const DecodeProblem& problem, const Sizes& sizes);
/// `pass`: packed_forward or packed_backward.
Bucket bucket_of(const PackedProblem& problem, const Sizes& sizes, Family pass = Family::packed_forward);
/// Families that have records, in the order in which stores list them.
inline constexpr Family kTunedFamilies[] = {Family::decode, Family::packed_forward, Family::packed_backward};
/// The inverse of Bucket::to_string; false for what is no bucket of this version.
bool parse_bucket(std::string_view text, Bucket& bucket);

/// The same code and legality: all but the sizes.
bool same_code(const Bucket& a, const Bucket& b);
/// Half octaves between two buckets of the same code, summed over the sizes.
int distance(const Bucket& a, const Bucket& b);
/// Beyond this a record says nothing about a bucket: two octaves in all.
inline constexpr int kNearest = 4;

/// Hex name of the record: 24 digits of the digest of to_string().
std::string key24(const Bucket& bucket);

struct BucketHash {
    std::size_t operator()(const Bucket& bucket) const noexcept;
};

}  // namespace sapwood::tune
