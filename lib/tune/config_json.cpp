// SPDX-License-Identifier: Apache-2.0
#include "tune/config_json.h"

#include <nlohmann/json.hpp>
#include <stdexcept>

#include "tune/config_fields.h"

namespace sapwood::tune {

using nlohmann::json;

json config_json(const DecodeConfig& config) { return json::parse(config.to_string()); }

void set_from_json(DecodeConfig& config, const std::string& name, const json& value) {
    if (!set_field(config, name, value.is_string() ? value.get<std::string>() : value.dump()))
        throw std::runtime_error("config field \"" + name + "\" with value " + value.dump() + " is not known to this version");
}

DecodeConfig config_from(const json& object) {
    DecodeConfig config;
    for (const auto& [name, value] : object.items()) {
        if (value != 0) set_from_json(config, name, value);
    }
    return config;
}

}  // namespace sapwood::tune
