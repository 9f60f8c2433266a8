// SPDX-License-Identifier: Apache-2.0
// The fields of a DecodeConfig by name: the one list that texts, records, orders and comparisons are made from, so that a field
// more is a line more.
#pragma once

#include <compare>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>

#include "sapwood/decode.h"

namespace sapwood::tune {

struct ConfigField {
    const char* name;
    std::int32_t DecodeConfig::*member;
    bool in_kernel;  // part of the kernel's key; the others only change the plan
};

std::span<const ConfigField> config_fields();

bool same_config(const DecodeConfig& a, const DecodeConfig& b);
bool same_kernel(const DecodeConfig& a, const DecodeConfig& b);
/// Field by field in the list's order: an order that is the same on every machine.
std::strong_ordering compare_configs(const DecodeConfig& a, const DecodeConfig& b);
/// Every field that `fixed` names (is not 0) has the same value in `config`.
bool agrees(const DecodeConfig& config, const DecodeConfig& fixed);
/// The fields that are not 0, short and in order: "warps=8,block_kv=64,split=2".
std::string config_text(const DecodeConfig& config);
/// Sets a field by name; false if there is none of this name.
bool set_field(DecodeConfig& config, std::string_view name, std::int32_t value);

}  // namespace sapwood::tune
