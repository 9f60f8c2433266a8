// SPDX-License-Identifier: Apache-2.0
// Candidate configurations per SM version: tables, most specific first. What a device cannot run is pruned by its real limits, so
// a list may be generous and an SM that has none of its own still works.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "kernel/key.h"
#include "sapwood/decode.h"

namespace sapwood::tune {

/// How the list that is used was found.
enum class Match : std::uint8_t { exact, family, major, generic };
const char* match_name(Match match) noexcept;

struct ConfigList {
    int sm;            // 90; 0 = generic
    const char* name;  // "sm_90"
    /// Kernels in order of preference: of two that are equally fast the earlier one is taken. A depth of 0 is the deepest ring that
    /// fits, up to six stages.
    std::span<const DecodeConfig> kernels;
    /// Values of DecodeConfig::split and ::rows that each kernel is tried with; 0 = as the planner's model says.
    std::span<const std::int32_t> splits, rows;
};

struct ListMatch {
    const ConfigList* list;
    Match match;
    std::string to_string() const;  // "sm_80 (family of sm_87)"
};

std::span<const ConfigList> config_lists();
/// The list for an SM: its own, of an SM whose multiprocessor is the same but for sizes, of its major version, the generic one.
ListMatch list_for(int sm);
/// Of kernels over packs, packed_forward or packed_backward: one for every SM, because what runs where is a matter of limits alone.
ListMatch packed_list(Family pass);

/// Every kernel with every split and width, in the order in which ties are broken.
std::vector<DecodeConfig> configs_of(const ConfigList& list);

/// Position of a configuration in that order; past the end for one that is not in the list. `resolved` has its stages filled in.
struct PreferenceOrder {
    explicit PreferenceOrder(int sm, Family family = Family::decode)
        : list(family == Family::decode ? list_for(sm).list : packed_list(family).list) {}
    const ConfigList* list;
    bool operator()(const DecodeConfig& a, const DecodeConfig& b) const;
    std::size_t rank(const DecodeConfig& resolved) const;
};

}  // namespace sapwood::tune
