// SPDX-License-Identifier: Apache-2.0
#include "tune/config_fields.h"

namespace sapwood::tune {
namespace {

constexpr ConfigField kFields[] = {
    {.name = "warps", .member = &DecodeConfig::warps, .in_kernel = true},
    {.name = "producers", .member = &DecodeConfig::producers, .in_kernel = true},
    {.name = "block_kv", .member = &DecodeConfig::block_kv, .in_kernel = true},
    {.name = "stages", .member = &DecodeConfig::stages, .in_kernel = true},
    {.name = "blocks", .member = &DecodeConfig::blocks, .in_kernel = true},
    {.name = "split", .member = &DecodeConfig::split, .in_kernel = false},
};
// A field that is missing above would be lost in every record.
static_assert(sizeof(DecodeConfig) == sizeof(std::int32_t) * std::size(kFields));

}  // namespace

std::span<const ConfigField> config_fields() { return kFields; }

bool same_config(const DecodeConfig& a, const DecodeConfig& b) { return compare_configs(a, b) == 0; }

bool same_kernel(const DecodeConfig& a, const DecodeConfig& b) {
    for (const ConfigField& field : kFields)
        if (field.in_kernel && a.*field.member != b.*field.member) return false;
    return true;
}

std::strong_ordering compare_configs(const DecodeConfig& a, const DecodeConfig& b) {
    for (const ConfigField& field : kFields)
        if (const auto order = a.*field.member <=> b.*field.member; order != 0) return order;
    return std::strong_ordering::equal;
}

bool agrees(const DecodeConfig& config, const DecodeConfig& fixed) {
    for (const ConfigField& field : kFields)
        if (fixed.*field.member != 0 && fixed.*field.member != config.*field.member) return false;
    return true;
}

std::string config_text(const DecodeConfig& config) {
    std::string text;
    for (const ConfigField& field : kFields) {
        if (config.*field.member == 0) continue;
        if (!text.empty()) text += ',';
        text += std::string(field.name) + '=' + std::to_string(config.*field.member);
    }
    return text;
}

bool set_field(DecodeConfig& config, std::string_view name, std::int32_t value) {
    for (const ConfigField& field : kFields) {
        if (name != field.name) continue;
        config.*field.member = value;
        return true;
    }
    return false;
}

}  // namespace sapwood::tune
