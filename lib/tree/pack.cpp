// SPDX-License-Identifier: Apache-2.0
#include <algorithm>

#include "base/error.h"
#include "sapwood/packed.h"

namespace sapwood {
namespace {

constexpr std::int64_t kMaxTokens = 1 << 29;  // sums of a position and a limit stay within 32 bits

[[noreturn]] void refuse(const std::string& text) { raise(ErrorCode::kInvalidProblem, text); }

std::int64_t pairs_of(const KeyRun& run) {
    // Rows of a key are an interval whose two ends each grow by one a key until (or from where) the run's own end cuts them: sums
    // of clipped lines.
    const auto sum_clipped = [&](std::int64_t shift, std::int64_t low, std::int64_t high) {
        // Sum over keys k of clamp(k + shift, low, high).
        const std::int64_t begin = run.key_begin, end = run.key_end;
        const std::int64_t to_low = std::clamp(low - shift, begin, end), to_high = std::clamp(high - shift, begin, end);
        const std::int64_t middle = to_high - to_low;
        return (to_low - begin) * low + (end - to_high) * high + middle * shift + (to_low + to_high - 1) * middle / 2;
    };
    const std::int64_t from = run.first == KeyRun::kNoFirst ? (run.key_end - run.key_begin) * std::int64_t{run.row_begin}
                                                            : sum_clipped(run.first, run.row_begin, run.row_end);
    const std::int64_t to = run.last == KeyRun::kNoLast ? (run.key_end - run.key_begin) * std::int64_t{run.row_end}
                                                        : sum_clipped(run.last, run.row_begin, run.row_end);
    return to - from;
}

std::string offset_text(const char* name, std::size_t i, std::span<const std::int32_t> offsets) {
    return std::string(name) + "[" + std::to_string(i) + "] = " + std::to_string(offsets[i]);
}

void check_offsets(const char* name, std::span<const std::int32_t> offsets) {
    if (offsets.empty() || offsets[0] != 0) refuse(std::string(name) + " must begin with 0");
    for (std::size_t i = 1; i < offsets.size(); ++i) {
        if (offsets[i] < offsets[i - 1])
            refuse(offset_text(name, i, offsets) + " is below " + offset_text(name, i - 1, offsets) + "; offsets must not fall");
    }
    if (offsets.back() > kMaxTokens)
        refuse(offset_text(name, offsets.size() - 1, offsets) + "; at most " + std::to_string(kMaxTokens) + " tokens");
}

}  // namespace

void Pack::add(const KeyRun& run) {
    if (run.key_begin == run.key_end || run.row_begin == run.row_end) return;
    runs_.push_back(run);
    visible_pairs_ += pairs_of(run);
}

Pack Pack::from_segments(std::span<const Segment> segments) {
    Pack pack;
    const auto count = static_cast<std::int32_t>(segments.size());
    std::vector<std::int32_t> begin(segments.size() + 1), path;  // path: the segments whose subtree is not over yet
    std::vector<std::int32_t> end(segments.size());              // of the subtree
    const auto close = [&](std::int32_t down_to, std::int64_t at) {
        while (!path.empty() && path.back() != down_to) {
            end[static_cast<std::size_t>(path.back())] = static_cast<std::int32_t>(at);
            path.pop_back();
        }
    };
    std::int64_t at = 0;
    for (std::int32_t i = 0; i < count; ++i) {
        const Segment& segment = segments[static_cast<std::size_t>(i)];
        if (segment.tokens < 0 || segment.tokens > kMaxTokens - at)
            refuse("segment " + std::to_string(i) + " has " + std::to_string(segment.tokens) + " tokens behind " +
                   std::to_string(at) + "; lengths are 0 or more and come to " + std::to_string(kMaxTokens) + " at most");
        close(segment.parent, at);
        if (segment.parent != -1 && path.empty())
            refuse("segment " + std::to_string(i) + " has parent " + std::to_string(segment.parent) +
                   ", which is no ancestor of the segment before it; list segments depth first, with -1 for roots");
        path.push_back(i);
        begin[static_cast<std::size_t>(i)] = static_cast<std::int32_t>(at);
        at += segment.tokens;
    }
    close(-1, at);
    begin[segments.size()] = static_cast<std::int32_t>(at);
    pack.rows_ = pack.keys_ = at;
    pack.runs_.reserve(segments.size());
    for (std::size_t i = 0; i < segments.size(); ++i)
        pack.add({.key_begin = begin[i],
                  .key_end = begin[i + 1],
                  .row_begin = begin[i],
                  .row_end = end[i],
                  .first = 0,
                  .last = KeyRun::kNoLast});
    return pack;
}

Pack Pack::from_cu_seqlens(std::span<const std::int32_t> cu_q, std::span<const std::int32_t> cu_k, const PackedMask& mask) {
    check_offsets("cu_q", cu_q);
    check_offsets("cu_k", cu_k);
    if (cu_q.size() != cu_k.size())
        refuse("cu_q has " + std::to_string(cu_q.size()) + " entries and cu_k " + std::to_string(cu_k.size()) +
               "; both have one more than there are sequences");
    if (mask.window_left < -1 || mask.window_right < -1)
        refuse("a window of " + std::to_string(mask.window_left) + " keys before and " + std::to_string(mask.window_right) +
               " behind; -1 means all");
    if (mask.dfs_arrays && !mask.causal)
        refuse("dfs_arrays needs causal: depth first, start_q[q] <= end_k[k] says nothing of keys behind the query");
    Pack pack;
    pack.dfs_arrays_ = mask.dfs_arrays;
    pack.rows_ = cu_q.back();
    pack.keys_ = cu_k.back();
    for (std::size_t i = 0; i + 1 < cu_q.size(); ++i) {
        // Row r stands at key r + (end of keys - end of rows): the last row at the last key.
        const std::int32_t shift = cu_q[i + 1] - cu_k[i + 1];
        const std::int32_t right = mask.causal ? 0 : mask.window_right;
        pack.add({.key_begin = cu_k[i],
                  .key_end = cu_k[i + 1],
                  .row_begin = cu_q[i],
                  .row_end = cu_q[i + 1],
                  .first = right < 0 || right >= kMaxTokens ? KeyRun::kNoFirst : shift - right,
                  .last = mask.window_left < 0 || mask.window_left >= kMaxTokens ? KeyRun::kNoLast : shift + mask.window_left + 1});
    }
    return pack;
}

}  // namespace sapwood
