// SPDX-License-Identifier: Apache-2.0
#include "tune/configs.h"

#include <algorithm>

#include "tune/config_fields.h"

namespace sapwood::tune {
namespace {

constexpr Mainloop kMma = Mainloop::mma, kWgmma = Mainloop::wgmma;

// 163 KB a block: six stages of 64 keys fit at head dims up to 96, four at 128.
constexpr DecodeConfig kSm80[] = {
    {.mainloop = kMma, .warps = 8, .producers = 4, .block_kv = 64, .blocks = 1},
    {.mainloop = kMma, .warps = 8, .producers = 4, .block_kv = 64, .stages = 3, .blocks = 1},
    {.mainloop = kMma, .warps = 8, .producers = 2, .block_kv = 64, .blocks = 1},
    {.mainloop = kMma, .warps = 4, .producers = 4, .block_kv = 64, .blocks = 1},
    {.mainloop = kMma, .warps = 4, .producers = 2, .block_kv = 64, .blocks = 1},
    {.mainloop = kMma, .warps = 8, .producers = 2, .block_kv = 32, .blocks = 1},
    {.mainloop = kMma, .warps = 8, .producers = 2, .block_kv = 32, .stages = 8, .blocks = 1},
    {.mainloop = kMma, .warps = 4, .producers = 2, .block_kv = 32, .blocks = 1},
    {.mainloop = kMma, .warps = 4, .producers = 2, .block_kv = 32, .stages = 8, .blocks = 1},
    {.mainloop = kMma, .warps = 4, .producers = 2, .block_kv = 32, .stages = 4, .blocks = 2},
    {.mainloop = kMma, .warps = 4, .producers = 4, .block_kv = 64, .stages = 3, .blocks = 2},
};

// 99 KB a block: rings of 64 keys are shallow, so 32 keys a stage come first.
constexpr DecodeConfig kSm86[] = {
    {.mainloop = kMma, .warps = 8, .producers = 4, .block_kv = 64, .blocks = 1},
    {.mainloop = kMma, .warps = 8, .producers = 2, .block_kv = 32, .blocks = 1},
    {.mainloop = kMma, .warps = 4, .producers = 4, .block_kv = 64, .blocks = 1},
    {.mainloop = kMma, .warps = 4, .producers = 2, .block_kv = 64, .blocks = 1},
    {.mainloop = kMma, .warps = 4, .producers = 2, .block_kv = 32, .blocks = 1},
    {.mainloop = kMma, .warps = 8, .producers = 2, .block_kv = 32, .stages = 3, .blocks = 1},
    {.mainloop = kMma, .warps = 4, .producers = 1, .block_kv = 32, .blocks = 1},
    {.mainloop = kMma, .warps = 4, .producers = 2, .block_kv = 32, .stages = 3, .blocks = 2},
};

// 227 KB a block, and copy warps that hand registers over (8 + 4 warps).
constexpr DecodeConfig kSm90[] = {
    {.mainloop = kMma, .warps = 8, .producers = 4, .block_kv = 64, .blocks = 1},
    {.mainloop = kMma, .warps = 8, .producers = 4, .block_kv = 64, .stages = 4, .blocks = 1},
    {.mainloop = kWgmma, .warps = 8, .producers = 4, .block_kv = 64, .blocks = 1},
    {.mainloop = kWgmma, .warps = 8, .producers = 4, .block_kv = 64, .stages = 4, .blocks = 1},
    {.mainloop = kWgmma, .warps = 8, .producers = 4, .block_kv = 128, .blocks = 1},
    {.mainloop = kMma, .warps = 8, .producers = 4, .block_kv = 128, .blocks = 1},
    {.mainloop = kMma, .warps = 8, .producers = 2, .block_kv = 64, .blocks = 1},
    {.mainloop = kMma, .warps = 8, .producers = 2, .block_kv = 32, .blocks = 1},
    {.mainloop = kMma, .warps = 8, .producers = 2, .block_kv = 32, .stages = 12, .blocks = 1},
    {.mainloop = kMma, .warps = 4, .producers = 4, .block_kv = 64, .blocks = 1},
    {.mainloop = kMma, .warps = 4, .producers = 4, .block_kv = 128, .blocks = 1},
    {.mainloop = kMma, .warps = 4, .producers = 2, .block_kv = 64, .blocks = 1},
    {.mainloop = kMma, .warps = 4, .producers = 2, .block_kv = 64, .stages = 4, .blocks = 1},
    {.mainloop = kMma, .warps = 4, .producers = 2, .block_kv = 32, .blocks = 1},
    {.mainloop = kMma, .warps = 4, .producers = 2, .block_kv = 32, .stages = 12, .blocks = 1},
    {.mainloop = kMma, .warps = 4, .producers = 2, .block_kv = 32, .stages = 6, .blocks = 2},
    {.mainloop = kMma, .warps = 4, .producers = 4, .block_kv = 64, .stages = 3, .blocks = 2},
};

// The shared memory of 9.0 with more bandwidth behind it: more bytes in flight, wider stages first.
constexpr DecodeConfig kSm100[] = {
    {.mainloop = kMma, .warps = 8, .producers = 4, .block_kv = 64, .blocks = 1},
    {.mainloop = kMma, .warps = 8, .producers = 4, .block_kv = 128, .blocks = 1},
    {.mainloop = kMma, .warps = 8, .producers = 2, .block_kv = 64, .blocks = 1},
    {.mainloop = kMma, .warps = 8, .producers = 2, .block_kv = 32, .stages = 12, .blocks = 1},
    {.mainloop = kMma, .warps = 4, .producers = 4, .block_kv = 64, .blocks = 1},
    {.mainloop = kMma, .warps = 4, .producers = 4, .block_kv = 128, .blocks = 1},
    {.mainloop = kMma, .warps = 4, .producers = 2, .block_kv = 64, .blocks = 1},
    {.mainloop = kMma, .warps = 4, .producers = 2, .block_kv = 32, .stages = 12, .blocks = 1},
    {.mainloop = kMma, .warps = 4, .producers = 2, .block_kv = 32, .stages = 6, .blocks = 2},
    {.mainloop = kMma, .warps = 4, .producers = 4, .block_kv = 64, .stages = 3, .blocks = 2},
};

// Fits every SM from 8.0 on.
constexpr DecodeConfig kGeneric[] = {
    {.mainloop = kMma, .warps = 8, .producers = 4, .block_kv = 64, .blocks = 1},
    {.mainloop = kMma, .warps = 4, .producers = 4, .block_kv = 64, .blocks = 1},
    {.mainloop = kMma, .warps = 8, .producers = 2, .block_kv = 32, .blocks = 1},
    {.mainloop = kMma, .warps = 4, .producers = 2, .block_kv = 32, .blocks = 1},
    {.mainloop = kMma, .warps = 4, .producers = 1, .block_kv = 32, .blocks = 1},
};

// Splits of the work and widths of its items: plans that come out the same are measured once.
constexpr std::int32_t kSplits[] = {0, 1, 2, 3, 4, 6};
constexpr std::int32_t kRows[] = {0, 128, 64, 32, 16};

// Of packed forward kernels, for every SM: the wide tiles of 9.0 first, the narrow ones that fit 99 KB and head dim 256 last. Their
// plans have no knobs.
constexpr DecodeConfig kPacked[] = {
    {.mainloop = kWgmma, .warps = 8, .producers = 4, .block_kv = 128, .stages = 2, .blocks = 1},
    {.mainloop = kWgmma, .warps = 8, .producers = 4, .block_kv = 64, .stages = 3, .blocks = 1},
    {.mainloop = kWgmma, .warps = 8, .producers = 4, .block_kv = 64, .stages = 2, .blocks = 1},
    {.mainloop = kWgmma, .warps = 8, .producers = 4, .block_kv = 64, .stages = 4, .blocks = 1},
    {.mainloop = kMma, .warps = 8, .producers = 4, .block_kv = 64, .stages = 2, .blocks = 1},
    {.mainloop = kMma, .warps = 8, .producers = 4, .block_kv = 64, .stages = 3, .blocks = 1},
    {.mainloop = kMma, .warps = 8, .producers = 4, .block_kv = 128, .stages = 2, .blocks = 1},
    {.mainloop = kMma, .warps = 8, .producers = 4, .block_kv = 32, .stages = 2, .blocks = 1},
    {.mainloop = kMma, .warps = 8, .producers = 4, .block_kv = 32, .stages = 4, .blocks = 1},
    {.mainloop = kMma, .warps = 4, .producers = 4, .block_kv = 64, .stages = 2, .blocks = 1},
    {.mainloop = kMma, .warps = 4, .producers = 4, .block_kv = 64, .stages = 2, .blocks = 2},
    {.mainloop = kMma, .warps = 4, .producers = 4, .block_kv = 32, .stages = 2, .blocks = 2},
    {.mainloop = kMma, .warps = 4, .producers = 4, .block_kv = 32, .stages = 2, .blocks = 1},
};
constexpr std::int32_t kNoKnob[] = {0};
constexpr ConfigList kPackedList = {.sm = 0, .name = "packed", .kernels = kPacked, .splits = kNoKnob, .rows = kNoKnob};

// Of packed backward kernels, in the planner's order (plan/backward_tiles.cpp). Into how many items the heads of a group fall is
// what a plan can choose.
constexpr DecodeConfig kBackward[] = {
    {.mainloop = kWgmma, .warps = 8, .producers = 4, .block_kv = 128, .stages = 2, .blocks = 1},
    {.mainloop = kMma, .warps = 8, .block_kv = 128, .stages = 2, .blocks = 1},
    {.mainloop = kMma, .warps = 8, .block_kv = 128, .stages = 1, .blocks = 1},
    {.mainloop = kMma, .warps = 8, .block_kv = 64, .stages = 2, .blocks = 1},
    {.mainloop = kMma, .warps = 8, .block_kv = 64, .stages = 1, .blocks = 1},
    {.mainloop = kMma, .warps = 8, .block_kv = 64, .stages = 2, .blocks = 2},
    {.mainloop = kMma, .warps = 8, .block_kv = 64, .stages = 1, .blocks = 2},
    {.mainloop = kMma, .warps = 8, .block_kv = 32, .stages = 2, .blocks = 1},
    {.mainloop = kMma, .warps = 8, .block_kv = 32, .stages = 1, .blocks = 1},
};
constexpr std::int32_t kGroupSplits[] = {0, 1, 2, 4, 8};
constexpr ConfigList kBackwardList = {
    .sm = 0, .name = "packed_backward", .kernels = kBackward, .splits = kGroupSplits, .rows = kNoKnob};

constexpr ConfigList kLists[] = {
    {.sm = 90, .name = "sm_90", .kernels = kSm90, .splits = kSplits, .rows = kRows},
    {.sm = 100, .name = "sm_100", .kernels = kSm100, .splits = kSplits, .rows = kRows},
    {.sm = 103, .name = "sm_103", .kernels = kSm100, .splits = kSplits, .rows = kRows},
    {.sm = 80, .name = "sm_80", .kernels = kSm80, .splits = kSplits, .rows = kRows},
    {.sm = 86, .name = "sm_86", .kernels = kSm86, .splits = kSplits, .rows = kRows},
    {.sm = 89, .name = "sm_89", .kernels = kSm86, .splits = kSplits, .rows = kRows},
    {.sm = 120, .name = "sm_120", .kernels = kSm86, .splits = kSplits, .rows = kRows},
    {.sm = 0, .name = "generic", .kernels = kGeneric, .splits = kSplits, .rows = kRows},
};

// An SM that is another one's in all that a configuration depends on.
struct Relative {
    int sm, list;
};
constexpr Relative kFamily[] = {{87, 80}, {88, 86}, {110, 100}, {121, 120}};

const ConfigList* find(int sm) {
    for (const ConfigList& list : kLists)
        if (list.sm == sm) return &list;
    return nullptr;
}

}  // namespace

const char* match_name(Match match) noexcept {
    switch (match) {
        case Match::exact:
            return "exact";
        case Match::family:
            return "family";
        case Match::major:
            return "major";
        case Match::generic:
            return "generic";
    }
    return "unknown";
}

std::string ListMatch::to_string() const { return std::string(list->name) + " (" + match_name(match) + ")"; }

std::span<const ConfigList> config_lists() { return kLists; }

ListMatch list_for(int sm) {
    if (const ConfigList* list = find(sm); list != nullptr && sm != 0) return {list, Match::exact};
    for (const Relative& relative : kFamily)
        if (relative.sm == sm) return {find(relative.list), Match::family};
    // Of the same major version, the one with the least shared memory: what fits it fits the others.
    const ConfigList* of_major = nullptr;
    for (const ConfigList& list : kLists)
        if (list.sm != 0 && list.sm / 10 == sm / 10 && (of_major == nullptr || list.sm > of_major->sm)) of_major = &list;
    if (of_major != nullptr) return {of_major, Match::major};
    return {find(0), Match::generic};
}

ListMatch packed_list(Family pass) { return {pass == Family::packed_backward ? &kBackwardList : &kPackedList, Match::generic}; }

std::vector<DecodeConfig> configs_of(const ConfigList& list) {
    std::vector<DecodeConfig> configs;
    configs.reserve(list.kernels.size() * list.splits.size() * list.rows.size());
    for (const DecodeConfig& kernel : list.kernels) {
        for (const std::int32_t rows : list.rows) {
            for (const std::int32_t split : list.splits) {
                configs.push_back(kernel);
                configs.back().split = split;
                configs.back().rows = rows;
            }
        }
    }
    return configs;
}

std::size_t PreferenceOrder::rank(const DecodeConfig& resolved) const {
    // By kernel first. A row that leaves the depth open stands for every depth that no other row names.
    std::size_t kernel = list->kernels.size();
    for (std::size_t i = 0; i < list->kernels.size(); ++i) {
        DecodeConfig row = list->kernels[i];
        const bool open = row.stages == 0;
        if (open) row.stages = resolved.stages;
        if (!same_kernel(row, resolved)) continue;
        if (kernel == list->kernels.size() || !open) kernel = i;
    }
    const auto place = [](std::span<const std::int32_t> values, std::int32_t value) {
        return static_cast<std::size_t>(std::find(values.begin(), values.end(), value) - values.begin());
    };
    return (kernel * (list->rows.size() + 1) + place(list->rows, resolved.rows)) * (list->splits.size() + 1) +
           place(list->splits, resolved.split);
}

bool PreferenceOrder::operator()(const DecodeConfig& a, const DecodeConfig& b) const {
    const std::size_t of_a = rank(a), of_b = rank(b);
    return of_a != of_b ? of_a < of_b : compare_configs(a, b) < 0;
}

}  // namespace sapwood::tune
