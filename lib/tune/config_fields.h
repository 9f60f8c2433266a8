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
    bool in_kernel;  // part of the kernel's key; the others only change the plan
    std::int32_t (*get)(const DecodeConfig&);
    void (*set)(DecodeConfig&, std::int32_t);
    std::span<const char* const> values = {};  // names of the values 0, 1, …; empty: a number
};

std::span<const ConfigField> config_fields();

bool same_config(const DecodeConfig& a, const DecodeConfig& b);
bool same_kernel(const DecodeConfig& a, const DecodeConfig& b);
/// Field by field in the list's order: an order that is the same on every machine.
std::strong_ordering compare_configs(const DecodeConfig& a, const DecodeConfig& b);
/// Every field that `fixed` names (is not 0) has the same value in `config`.
bool agrees(const DecodeConfig& config, const DecodeConfig& fixed);
/// `config` with the fields that `fixed` names taken from it.
DecodeConfig with_fixed(DecodeConfig config, const DecodeConfig& fixed);
/// The fields that are not 0, short and in order: "mainloop=mma,warps=8,block_kv=64,split=2".
std::string config_text(const DecodeConfig& config);
/// The same of the fields that only change the plan: "split=2"; "" if the planner chooses them.
std::string plan_text(const DecodeConfig& config);
/// `kernel` with the plan's fields as plan_text gave them; false if the text is none.
bool parse_plan(DecodeConfig& kernel, std::string_view text);
/// Sets a field by name to a number or a value's name; false if there is no such field or value.
bool set_field(DecodeConfig& config, std::string_view name, std::string_view value);

}  // namespace sapwood::tune
