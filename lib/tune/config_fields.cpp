// SPDX-License-Identifier: Apache-2.0
#include "tune/config_fields.h"

#include <algorithm>
#include <charconv>

namespace sapwood::tune {
namespace {

constexpr const char* kMainloops[] = {"choose", "mma", "wgmma"};

template <auto Member>
constexpr ConfigField number(const char* name, bool in_kernel) {
    return {
        .name = name,
        .in_kernel = in_kernel,
        .get = [](const DecodeConfig& config) { return static_cast<std::int32_t>(config.*Member); },
        .set = [](DecodeConfig& config,
                  std::int32_t value) { config.*Member = static_cast<std::remove_reference_t<decltype(config.*Member)>>(value); }};
}

template <auto Member>
constexpr ConfigField named(const char* name, bool in_kernel, std::span<const char* const> values) {
    ConfigField field = number<Member>(name, in_kernel);
    field.values = values;
    return field;
}

constexpr ConfigField kFields[] = {
    named<&DecodeConfig::mainloop>("mainloop", true, kMainloops),
    number<&DecodeConfig::warps>("warps", true),
    number<&DecodeConfig::producers>("producers", true),
    number<&DecodeConfig::block_kv>("block_kv", true),
    number<&DecodeConfig::stages>("stages", true),
    number<&DecodeConfig::blocks>("blocks", true),
    number<&DecodeConfig::split>("split", false),
    number<&DecodeConfig::rows>("rows", false),
};
// A field that is missing above would be lost in every record.
static_assert(sizeof(DecodeConfig) == sizeof(std::int32_t) * std::size(kFields));

template <class Wanted>
std::string text_of(const DecodeConfig& config, const Wanted& wanted) {
    std::string text;
    for (const ConfigField& field : kFields) {
        const std::int32_t value = field.get(config);
        if (value == 0 || !wanted(field)) continue;
        if (!text.empty()) text += ',';
        text += field.name;
        text += '=';
        text += static_cast<std::size_t>(value) < field.values.size() ? field.values[static_cast<std::size_t>(value)]
                                                                      : std::to_string(value);
    }
    return text;
}

}  // namespace

std::span<const ConfigField> config_fields() { return kFields; }

bool same_config(const DecodeConfig& a, const DecodeConfig& b) { return compare_configs(a, b) == 0; }

bool same_kernel(const DecodeConfig& a, const DecodeConfig& b) {
    for (const ConfigField& field : kFields)
        if (field.in_kernel && field.get(a) != field.get(b)) return false;
    return true;
}

std::strong_ordering compare_configs(const DecodeConfig& a, const DecodeConfig& b) {
    for (const ConfigField& field : kFields)
        if (const auto order = field.get(a) <=> field.get(b); order != 0) return order;
    return std::strong_ordering::equal;
}

bool agrees(const DecodeConfig& config, const DecodeConfig& fixed) {
    for (const ConfigField& field : kFields)
        if (field.get(fixed) != 0 && field.get(fixed) != field.get(config)) return false;
    return true;
}

DecodeConfig with_fixed(DecodeConfig config, const DecodeConfig& fixed) {
    for (const ConfigField& field : kFields)
        if (field.get(fixed) != 0) field.set(config, field.get(fixed));
    return config;
}

std::string config_text(const DecodeConfig& config) {
    return text_of(config, [](const ConfigField&) { return true; });
}

std::string plan_text(const DecodeConfig& config) {
    return text_of(config, [](const ConfigField& field) { return !field.in_kernel; });
}

bool parse_plan(DecodeConfig& kernel, std::string_view text) {
    for (const ConfigField& field : kFields)
        if (!field.in_kernel) field.set(kernel, 0);
    for (std::size_t at = 0; at < text.size();) {
        const std::size_t end = std::min(text.find(',', at), text.size()), equals = std::min(text.find('=', at), end);
        if (equals == end || !set_field(kernel, text.substr(at, equals - at), text.substr(equals + 1, end - equals - 1)))
            return false;
        at = end + 1;
    }
    return true;
}

bool set_field(DecodeConfig& config, std::string_view name, std::string_view value) {
    for (const ConfigField& field : kFields) {
        if (name != field.name) continue;
        std::int32_t number = -1;
        for (std::size_t i = 0; i < field.values.size(); ++i)
            if (value == field.values[i]) number = static_cast<std::int32_t>(i);
        if (field.values.empty()) {
            const auto parsed = std::from_chars(value.data(), value.data() + value.size(), number);
            if (parsed.ec != std::errc{} || parsed.ptr != value.data() + value.size()) return false;
        }
        if (number < 0) return false;
        field.set(config, number);
        return true;
    }
    return false;
}

}  // namespace sapwood::tune
