// SPDX-License-Identifier: Apache-2.0
// The choices of a database in one small file. A shipped index is parsed by every process that plans, so configurations are listed
// once and referred to by position inside the file, always beside their named values.
#include <algorithm>
#include <nlohmann/json.hpp>

#include "tune/config_fields.h"
#include "tune/config_json.h"
#include "tune/database.h"

namespace sapwood::tune {
namespace {

using nlohmann::json;
constexpr int kIndexSchema = 1;
constexpr std::size_t kRanked = 6;  // kept a bucket

}  // namespace

std::string index_text(const Environment& environment, std::span<const Record> records, const TunePolicy& policy) {
    std::vector<DecodeConfig> configs;
    const auto position = [&](const DecodeConfig& config) {
        const auto at = std::find_if(configs.begin(), configs.end(), [&](const DecodeConfig& c) { return same_config(c, config); });
        if (at != configs.end()) return static_cast<std::size_t>(at - configs.begin());
        configs.push_back(config);
        return configs.size() - 1;
    };
    std::vector<std::pair<std::string, json>> choices;
    for (const Record& record : records) {
        json ranked = json::array();
        for (const auto& [config, ratio] : record.ranked(environment.sm)) {
            if (ranked.size() < kRanked) ranked.push_back(position(config));
        }
        choices.emplace_back(record.bucket.to_string(),
                             json{{"best", position(record.best(environment.sm, policy))}, {"ranked", ranked}});
    }
    std::sort(choices.begin(), choices.end(), [](const auto& a, const auto& b) { return a.first < b.first; });
    // A line a configuration and a bucket: a change of a choice is a change of a line.
    std::string text = "{\"schema\":" + std::to_string(kIndexSchema) +
                       ",\n\"environment\":" + json::parse(to_json(environment)).dump() + ",\n\"configs\":[";
    for (std::size_t i = 0; i < configs.size(); ++i) text += (i > 0 ? ",\n" : "\n") + configs[i].to_string();
    text += "],\n\"choices\":{";
    for (std::size_t i = 0; i < choices.size(); ++i)
        text += (i > 0 ? ",\n" : "\n") + json(choices[i].first).dump() + ":" + choices[i].second.dump();
    return text + "}}\n";
}

bool parse_index(std::string_view text, Environment& environment, std::unordered_map<Bucket, Choice, BucketHash>& choices,
                 std::string* fault) {
    try {
        const json index = json::parse(text);
        if (index.at("schema") != kIndexSchema) throw std::runtime_error("schema " + index.at("schema").dump());
        const auto read = environment_from(index.at("environment").dump(), fault);
        if (!read) return false;
        environment = *read;
        std::vector<DecodeConfig> configs;
        for (const json& object : index.at("configs")) configs.push_back(config_from(object));
        for (const auto& [name, object] : index.at("choices").items()) {
            Bucket bucket;
            if (!parse_bucket(name, bucket)) continue;  // of another version of the buckets
            Choice choice = {.best = configs.at(object.at("best").get<std::size_t>())};
            for (const json& each : object.at("ranked")) choice.ranked.push_back(configs.at(each.get<std::size_t>()));
            choices.emplace(bucket, std::move(choice));
        }
        return true;
    } catch (const std::exception& error) {
        if (fault != nullptr) *fault = error.what();
        return false;
    }
}

}  // namespace sapwood::tune
