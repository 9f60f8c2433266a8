// SPDX-License-Identifier: Apache-2.0
#include "tune/bucket.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "base/digest.h"
#include "plan/tiles.h"

namespace sapwood::tune {
namespace {

constexpr const char* kPageKinds[] = {"contiguous", "token", "pages"};
constexpr const char* kScores[] = {"scaled", "softcap", "negated"};
constexpr DType kDTypes[] = {DType::fp16, DType::bf16};

// The fields of the text after the code part, in order.
struct SizeField {
    char letter;
    std::uint8_t Bucket::*member;
};
constexpr SizeField kSizes[] = {{'h', &Bucket::kv_heads}, {'r', &Bucket::requests}, {'u', &Bucket::unique},
                                {'x', &Bucket::sharing},  {'w', &Bucket::widest},   {'l', &Bucket::longest}};

template <class Number>
bool number_after(std::string_view part, std::string_view prefix, Number& value) {
    if (!part.starts_with(prefix)) return false;
    const char* end = part.data() + part.size();
    const auto parsed = std::from_chars(part.data() + prefix.size(), end, value);
    return parsed.ec == std::errc{} && parsed.ptr == end;
}

Bucket bucket_of(const KernelKey& key, PageKind pages, int group, const Sizes& sizes) {
    Bucket bucket;
    bucket.family = key.family;
    bucket.dtype = key.dtype;
    bucket.kv_dtype = key.kv_dtype;
    bucket.score = key.score;
    bucket.mask = key.mask != 0;
    bucket.pages = static_cast<std::uint8_t>(pages);
    bucket.head_dim = key.head_dim;
    bucket.head_dim_v = key.head_dim_v;
    bucket.group = static_cast<std::uint16_t>(group);
    bucket.kv_heads = half_octave(static_cast<double>(sizes.kv_heads));
    bucket.requests = half_octave(static_cast<double>(sizes.requests));
    bucket.unique = half_octave(static_cast<double>(sizes.unique_tokens));
    const double unique = static_cast<double>(std::max<std::int64_t>(1, sizes.unique_tokens));
    bucket.sharing = half_octave(static_cast<double>(sizes.path_tokens) / unique);
    bucket.widest = half_octave(static_cast<double>(sizes.widest));
    bucket.longest = half_octave(static_cast<double>(sizes.longest));
    return bucket;
}

}  // namespace

Sizes sizes_of(const DecodeProblem& problem, const ForestOrder& order) {
    Sizes sizes;
    sizes.kv_heads = problem.kv_heads;
    sizes.page_size = problem.page_size;
    sizes.requests = static_cast<std::int64_t>(order.requests.size());
    sizes.unique_tokens = order.used_tokens;
    sizes.path_tokens = order.path_tokens;
    sizes.widest = order.widest;
    for (const std::int32_t entry : order.request_entry) {
        const ForestOrder::Entry& last = order.entries[static_cast<std::size_t>(entry)];
        sizes.longest = std::max(sizes.longest, last.depth_begin + last.tokens);
    }
    return sizes;
}

std::uint8_t half_octave(double value) {
    // The boundaries are irrational: no integer lies on one, so that every machine finds the same bucket.
    if (value < 1) return 0;
    return static_cast<std::uint8_t>(1 + std::min(250.0, std::floor(2 * std::log2(value) + 0.5)));
}

double middle_of(std::uint8_t half) {
    if (half == 0) return 0;
    const double middle = std::exp2((half - 1) / 2.0);
    // Rounded for people; 1.4 alone would become another half octave.
    return middle < 2 ? std::round(middle * 10) / 10 : std::round(middle);
}

Sizes sizes_of(const PackedProblem& problem, std::int64_t rows, std::int64_t keys, std::int64_t visible_pairs, std::int64_t runs) {
    return {.kv_heads = problem.kv_heads,
            .requests = rows,
            .unique_tokens = keys,
            .path_tokens = visible_pairs,
            .longest = keys / std::max<std::int64_t>(1, runs)};
}

Sizes sizes_of(const PackedProblem& problem, const Pack& pack) {
    return sizes_of(problem, pack.rows(), pack.keys(), pack.visible_pairs(), static_cast<std::int64_t>(pack.runs().size()));
}

Bucket bucket_of(const DecodeProblem& problem, const Sizes& sizes) {
    const PageKind pages = problem.page_size == 0   ? PageKind::contiguous
                           : problem.page_size == 1 ? PageKind::token
                                                    : PageKind::pages;
    return bucket_of(decode_key(problem, {}, {}), pages, group_of(problem), sizes);
}

Bucket bucket_of(const PackedProblem& problem, const Sizes& sizes, Family pass) {
    return bucket_of(packed_key(pass, problem, {}, {}), PageKind::contiguous, problem.q_heads / problem.kv_heads, sizes);
}

std::string Bucket::to_string() const {
    std::string text = std::string(family_name(static_cast<Family>(family))) + "/b" + std::to_string(version) + "/" +
                       dtype_name(static_cast<DType>(dtype)) +
                       (kv_dtype != 0 ? std::string("/") + kv_dtype_name(static_cast<KvDType>(kv_dtype)) : std::string()) + "/d" +
                       std::to_string(head_dim) + "/v" + std::to_string(head_dim_v) + "/g" + std::to_string(group) + "/" +
                       kPageKinds[std::min<std::size_t>(pages, 2)] + "/" + kScores[std::min<std::size_t>(score, 2)] +
                       (mask ? "+mask" : "");
    for (const SizeField& field : kSizes) {
        char number[32];
        std::snprintf(number, sizeof number, "/%c%.12g", field.letter, middle_of(this->*field.member));
        text += number;
    }
    return text;
}

bool parse_bucket(std::string_view text, Bucket& bucket) {
    std::vector<std::string_view> parts;
    for (std::size_t at = 0; at <= text.size();) {
        const std::size_t end = std::min(text.find('/', at), text.size());
        parts.push_back(text.substr(at, end - at));
        at = end + 1;
    }
    constexpr std::size_t kCode = 8;
    Bucket read;
    if (parts.size() > 3 && parts[3] == kv_dtype_name(KvDType::e4m3)) {
        read.kv_dtype = static_cast<std::uint8_t>(KvDType::e4m3);
        parts.erase(parts.begin() + 3);
    }
    const auto family = std::find_if(std::begin(kTunedFamilies), std::end(kTunedFamilies),
                                     [&](Family known) { return parts[0] == family_name(known); });
    if (parts.size() != kCode + std::size(kSizes) || family == std::end(kTunedFamilies)) return false;
    read.family = static_cast<std::uint8_t>(*family);
    long version = 0, dim = 0, dim_v = 0, group = 0;
    if (!number_after(parts[1], "b", version) || version != kBucketVersion) return false;
    if (!number_after(parts[3], "d", dim) || !number_after(parts[4], "v", dim_v) || !number_after(parts[5], "g", group))
        return false;
    const auto index_in = [](const auto& names, std::string_view name) {
        return static_cast<std::size_t>(std::find(std::begin(names), std::end(names), name) - std::begin(names));
    };
    const auto dtype =
        std::find_if(std::begin(kDTypes), std::end(kDTypes), [&](DType type) { return parts[2] == dtype_name(type); });
    constexpr std::string_view kMask = "+mask";
    read.mask = parts[7].ends_with(kMask);
    if (read.mask) parts[7].remove_suffix(kMask.size());
    const std::size_t pages = index_in(kPageKinds, parts[6]), score = index_in(kScores, parts[7]);
    if (dtype == std::end(kDTypes) || pages == std::size(kPageKinds) || score == std::size(kScores)) return false;
    read.dtype = static_cast<std::uint8_t>(*dtype);
    read.pages = static_cast<std::uint8_t>(pages);
    read.score = static_cast<std::uint8_t>(score);
    read.head_dim = static_cast<std::uint16_t>(dim);
    read.head_dim_v = static_cast<std::uint16_t>(dim_v);
    read.group = static_cast<std::uint16_t>(group);
    for (std::size_t i = 0; i < std::size(kSizes); ++i) {
        double value = 0;
        if (!number_after(parts[kCode + i], std::string_view(&kSizes[i].letter, 1), value)) return false;
        read.*kSizes[i].member = half_octave(value);
    }
    bucket = read;
    return true;
}

bool same_code(const Bucket& a, const Bucket& b) {
    return a.version == b.version && a.family == b.family && a.dtype == b.dtype && a.kv_dtype == b.kv_dtype && a.mask == b.mask &&
           a.score == b.score && a.pages == b.pages && a.head_dim == b.head_dim && a.head_dim_v == b.head_dim_v &&
           a.group == b.group;
}

int distance(const Bucket& a, const Bucket& b) {
    int sum = 0;
    for (const SizeField& field : kSizes) sum += std::abs(a.*field.member - b.*field.member);
    return sum;
}

std::string key24(const Bucket& bucket) {
    Hasher hasher;
    hasher.field(1, bucket.to_string());
    return to_hex(hasher.finish()).substr(0, 24);
}

std::size_t BucketHash::operator()(const Bucket& b) const noexcept {
    std::uint64_t h = 0x9E3779B97F4A7C15u;
    const auto mix = [&](std::uint64_t value) {
        h = (h ^ value) * 0xBF58476D1CE4E5B9u;
        h ^= h >> 29;
    };
    mix(std::uint64_t{b.version} | std::uint64_t{b.dtype} << 8 | std::uint64_t{b.score} << 16 | std::uint64_t{b.pages} << 24 |
        std::uint64_t{b.head_dim} << 32 | std::uint64_t{b.head_dim_v} << 48);
    mix(std::uint64_t{b.group} | std::uint64_t{b.kv_heads} << 16 | std::uint64_t{b.requests} << 24 | std::uint64_t{b.unique} << 32 |
        std::uint64_t{b.sharing} << 40 | std::uint64_t{b.widest} << 48 | std::uint64_t{b.longest} << 56);
    mix(b.kv_dtype | (b.mask ? 256u : 0u) | std::uint64_t{b.family} << 16);
    return static_cast<std::size_t>(h);
}

}  // namespace sapwood::tune
