// SPDX-License-Identifier: Apache-2.0
// A DecodeConfig in records, traces and engine configurations: one JSON object of named values.
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>

#include "sapwood/decode.h"

namespace sapwood::tune {

/// Every field, as DecodeConfig::to_string writes it.
nlohmann::json config_json(const DecodeConfig& config);
/// Sets a field to a number or a value's name. Throws std::runtime_error if there is no such field or value.
void set_from_json(DecodeConfig& config, const std::string& name, const nlohmann::json& value);
/// A field that this version does not know makes another configuration of it: throws, unless it is 0.
DecodeConfig config_from(const nlohmann::json& object);

}  // namespace sapwood::tune
