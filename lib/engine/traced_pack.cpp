// SPDX-License-Identifier: Apache-2.0
#include "engine/traced_pack.h"

#include <nlohmann/json.hpp>

#include "base/error.h"
#include "engine/trace_lines.h"
#include "tune/config_json.h"
#include "tune/packed_candidates.h"

namespace sapwood {
namespace {

using nlohmann::json;
constexpr const char* kPasses[] = {"forward", "backward"};
constexpr const char* kDeterministic = "deterministic";

TracedPack pack_from(const json& line) {
    const json& pack = line.at(kPackField);
    TracedPack record;
    record.problem = {.q_heads = pack.at("q_heads"),
                      .kv_heads = pack.at("kv_heads"),
                      .head_dim = pack.at("head_dim"),
                      .head_dim_v = pack.at("head_dim_v"),
                      .dtype = traced_dtype(pack.at("dtype")),
                      .scale = pack.at("scale"),
                      .softcap = pack.at("softcap")};
    const auto pass = line.at("pass").get<std::string>();
    if (pass != kPasses[0] && pass != kPasses[1]) raise(ErrorCode::kIo, "pass \"" + pass + "\" is neither forward nor backward");
    record.backward = pass == kPasses[1];
    record.deterministic = line.value(kDeterministic, false);  // older traces say nothing
    record.config = tune::as_packed(tune::config_from(line.at("config")));
    record.target = line.at("target"), record.keys = line.at("keys");
    record.rows = line.at("rows"), record.tokens = line.at("tokens");
    record.visible_pairs = line.at("visible_pairs"), record.runs = line.at("runs");
    record.planned = line.at("planned"), record.launched = line.at("launched");
    return record;
}

}  // namespace

std::vector<TracedPack> read_traced_packs(const std::filesystem::path& path) {
    std::vector<TracedPack> packs;
    read_trace_lines(path, [&](const json& line) {
        if (line.contains(kPackField)) packs.push_back(pack_from(line));
    });
    return packs;
}

std::string trace_line(const TracedPack& record) {
    const PackedProblem& problem = record.problem;
    const json pack = {{"q_heads", problem.q_heads},       {"kv_heads", problem.kv_heads},       {"head_dim", problem.head_dim},
                       {"head_dim_v", problem.head_dim_v}, {"dtype", dtype_name(problem.dtype)}, {"scale", problem.scale},
                       {"softcap", problem.softcap}};
    return json{{kPackField, pack},
                {"pass", kPasses[record.backward]},
                {kDeterministic, record.deterministic},
                {"config", tune::config_json(tune::as_decode(record.config))},
                {"target", record.target},
                {"keys", record.keys},
                {"rows", record.rows},
                {"tokens", record.tokens},
                {"visible_pairs", record.visible_pairs},
                {"runs", record.runs},
                {"planned", record.planned},
                {"launched", record.launched}}
               .dump() +
           "\n";
}

}  // namespace sapwood
