// SPDX-License-Identifier: Apache-2.0
#include "engine/engine_config.h"

#include <algorithm>
#include <cmath>
#include <fstream>
#include <nlohmann/json.hpp>
#include <set>
#include <tuple>

#include "base/error.h"
#include "kernel/key_text.h"
#include "plan/tiles.h"
#include "tune/config_json.h"

namespace sapwood {
namespace {

using nlohmann::json;

constexpr std::int64_t kMaxBatch = 1 << 16, kMaxContext = 1 << 28, kMaxPack = 1 << 29;

void known_fields(const json& object, std::initializer_list<const char*> known) {
    for (const auto& [name, value] : object.items()) {
        if (std::find_if(known.begin(), known.end(), [&, &key = name](const char* one) { return key == one; }) == known.end())
            raise(ErrorCode::kIo, "field \"" + name + "\" is not known");
    }
}

/// A number or a list of them, or what is given in its absence.
template <class T>
std::vector<T> list(const json& object, const char* name, std::vector<T> absent) {
    if (!object.contains(name)) return absent;
    const json& value = object.at(name);
    return value.is_array() ? value.get<std::vector<T>>() : std::vector<T>{value.get<T>()};
}

/// {"min": 1, "max": 256}: the powers of two between, and both ends.
std::vector<std::int64_t> range(const json& root, const char* name, std::int64_t limit) {
    const json& object = root.at(name);
    known_fields(object, {"min", "max"});
    const auto low = object.at("min").get<std::int64_t>(), high = object.at("max").get<std::int64_t>();
    if (low < 1 || high < low || high > limit)
        raise(ErrorCode::kIo, std::string(name) + " from " + std::to_string(low) + " to " + std::to_string(high) +
                                  " is not a range within 1.." + std::to_string(limit));
    std::vector<std::int64_t> values = {low};
    for (std::int64_t power = 1; power < high; power *= 2) {
        if (power > low) values.push_back(power);
    }
    if (high > low) values.push_back(high);
    return values;
}

DType dtype_of(const std::string& name) {
    if (name == "fp16") return DType::fp16;
    if (name == "bf16") return DType::bf16;
    raise(ErrorCode::kIo, "dtype \"" + name + "\" is neither fp16 nor bf16");
}

KvDType kv_dtype_of(const std::string& name) {
    for (const KvDType dtype : {KvDType::as_q, KvDType::e4m3}) {
        if (name == kv_dtype_name(dtype)) return dtype;
    }
    raise(ErrorCode::kIo, "kv_dtype \"" + name + "\" is neither as_q nor fp8_e4m3");
}

Sharing sharing_of(const std::string& name) {
    if (name == "none") return Sharing::none;
    if (name == "prefix") return Sharing::prefix;
    if (name == "tree") return Sharing::tree;
    raise(ErrorCode::kIo, "sharing \"" + name + "\" is none of none, prefix, tree");
}

DecodeConfig tiles_of(const json& object) {
    known_fields(object, {"mainloop", "warps", "producers", "block_kv", "stages", "blocks"});
    return tune::config_from(object);
}

std::vector<DecodeProblem> problems_of(const json& root) {
    std::vector<DecodeProblem> problems;
    std::set<std::tuple<int, int, int, int, int, int, int, float, float>> seen;
    const auto add = [&](const DecodeProblem& p) {
        if (seen.emplace(p.q_heads, p.kv_heads, p.head_dim, p.head_dim_v, static_cast<int>(p.dtype), static_cast<int>(p.kv_dtype),
                         p.page_size, p.scale, p.softcap)
                .second)
            problems.push_back(p);
    };
    for (const json& model : root.at("models")) {
        known_fields(model, {"name", "q_heads", "kv_heads", "head_dim", "head_dim_v", "scale", "softcap"});
        for (const int ranks : list<int>(root, "tensor_parallel", {1})) {
            DecodeProblem problem = {.q_heads = model.at("q_heads"),
                                     .kv_heads = model.at("kv_heads"),
                                     .head_dim = model.at("head_dim"),
                                     .head_dim_v = model.value("head_dim_v", 0),
                                     .scale = model.value("scale", 0.f),
                                     .softcap = model.value("softcap", 0.f)};
            if (ranks < 1 || problem.q_heads % ranks != 0) continue;  // such a model is not run on so many
            problem.q_heads /= ranks;
            problem.kv_heads = std::max(1, problem.kv_heads / ranks);  // fewer KV heads than ranks: each rank has a copy
            for (const std::string& dtype : list<std::string>(root, "dtype", {"bf16"})) {
                problem.dtype = dtype_of(dtype);
                for (const std::string& kv_dtype : list<std::string>(root, "kv_dtype", {kv_dtype_name(KvDType::as_q)})) {
                    problem.kv_dtype = kv_dtype_of(kv_dtype);
                    for (const int page : list<int>(root, "page_size", {16})) {
                        problem.page_size = page;
                        add(problem);
                    }
                }
            }
        }
    }
    if (problems.empty()) raise(ErrorCode::kIo, "it names no model that fits its tensor_parallel");
    return problems;
}

/// The same models without pages and KV dtypes.
std::vector<PackedProblem> packed_problems_of(const std::vector<DecodeProblem>& problems) {
    std::vector<PackedProblem> packed;
    std::set<std::tuple<int, int, int, int, int, float, float>> seen;
    for (const DecodeProblem& p : problems) {
        if (seen.emplace(p.q_heads, p.kv_heads, p.head_dim, p.head_dim_v, static_cast<int>(p.dtype), p.scale, p.softcap).second)
            packed.push_back({.q_heads = p.q_heads,
                              .kv_heads = p.kv_heads,
                              .head_dim = p.head_dim,
                              .head_dim_v = p.head_dim_v,
                              .dtype = p.dtype,
                              .scale = p.scale,
                              .softcap = p.softcap});
    }
    return packed;
}

PackGrid packs_of(const json& packs) {
    known_fields(packs, {"tokens", "segment", "passes"});
    PackGrid grid = {.tokens = range(packs, "tokens", kMaxPack), .forward = false, .backward = false};
    grid.segments = packs.contains("segment") ? range(packs, "segment", kMaxPack) : grid.tokens;
    for (const std::string& pass : list<std::string>(packs, "passes", {"forward", "backward"})) {
        if (pass != "forward" && pass != "backward") raise(ErrorCode::kIo, "pass \"" + pass + "\" is neither forward nor backward");
        (pass == "forward" ? grid.forward : grid.backward) = true;
    }
    return grid;
}

/// A forest of `batch` requests that see `context` tokens each.
Forest forest_of(std::int64_t batch, std::int64_t context, Sharing sharing) {
    std::vector<Node> nodes;
    std::int64_t position = 0;
    const auto add = [&](std::int64_t parent, std::int64_t tokens) {
        nodes.push_back({static_cast<std::int32_t>(parent), tokens, position});
        position += (tokens + 127) / 128 * 128;  // from a boundary of the largest page
        return static_cast<std::int64_t>(nodes.size()) - 1;
    };
    const std::int64_t own = sharing == Sharing::none ? context : std::max<std::int64_t>(1, context / 4);
    if (sharing == Sharing::none) {
        for (std::int64_t i = 0; i < batch; ++i) add(-1, own);
    } else if (sharing == Sharing::prefix) {
        const std::int64_t root = add(-1, context - own);
        for (std::int64_t i = 0; i < batch; ++i) add(root, own);
    } else {
        const std::int64_t root = add(-1, context - 2 * own > 0 ? context - 2 * own : 0);
        const auto width = static_cast<std::int64_t>(std::ceil(std::sqrt(static_cast<double>(batch))));
        for (std::int64_t i = 0; i < width; ++i) add(root, own);
        for (std::int64_t i = 0; i < batch; ++i) add(1 + i * width / batch, own);
    }
    return Forest::from_nodes(nodes);
}

std::string text_of(const DecodeProblem& p) {
    const std::string kv = p.kv_dtype == KvDType::as_q ? "" : std::string(" with KV ") + kv_dtype_name(p.kv_dtype);
    return dtype_name(p.dtype) + kv + " " + std::to_string(p.q_heads) + "/" + std::to_string(p.kv_heads) + " heads of " +
           std::to_string(p.head_dim) + ", page " + std::to_string(p.page_size);
}

}  // namespace

void KeyList::sort_out() {
    std::sort(keys.begin(), keys.end());
    keys.erase(std::unique(keys.begin(), keys.end()), keys.end());
}

void KeyList::add(const KeyList& other) {
    keys.insert(keys.end(), other.keys.begin(), other.keys.end());
    faults.insert(faults.end(), other.faults.begin(), other.faults.end());
    plans += other.plans;
    sort_out();
}

EngineConfig read_engine_config(const std::filesystem::path& path) {
    std::ifstream in(path);
    if (!in) raise(ErrorCode::kIo, "cannot read the engine configuration " + path.string());
    try {
        const json root = json::parse(in, nullptr, true, /*ignore_comments=*/true);
        known_fields(root, {"schema", "kind", "name", "models", "tensor_parallel", "dtype", "kv_dtype", "page_size", "batch",
                            "context", "max_tokens", "sharing", "configs", "packs", "targets"});
        if (root.at("kind").get<std::string>() != "engine" || root.at("schema").get<int>() != 1)
            raise(ErrorCode::kIo, "kind " + root.at("kind").dump() + ", schema " + root.at("schema").dump() +
                                      "; this reader knows kind \"engine\", schema 1");
        EngineConfig config;
        config.name = root.value("name", "");
        config.targets = list<std::string>(root, "targets", {});
        config.problems = problems_of(root);
        if (root.contains("packs")) {
            config.packed_problems = packed_problems_of(config.problems);
            config.packs = packs_of(root.at("packs"));
        }
        if (!root.contains("packs") || root.contains("batch") || root.contains("context")) {  // a trainer may decode nothing
            config.batches = range(root, "batch", kMaxBatch);
            config.contexts = range(root, "context", kMaxContext);
        }
        config.max_tokens = root.value("max_tokens", std::int64_t{0});
        for (const std::string& name : list<std::string>(root, "sharing", {"none", "prefix"}))
            config.sharing.push_back(sharing_of(name));
        for (const json& tiles : root.value("configs", json::array({json::object()}))) config.configs.push_back(tiles_of(tiles));
        return config;
    } catch (const std::exception& error) {
        raise(ErrorCode::kIo, "engine configuration " + path.string() + ": " + error.what());
    }
}

KeyList keys_of(Engine& engine, const EngineConfig& config) {
    KeyList found;
    for (const std::int64_t batch : config.batches) {
        for (const std::int64_t context : config.contexts) {
            for (const Sharing sharing : config.sharing) {
                const Forest forest = forest_of(batch, context, sharing);
                if (config.max_tokens > 0 && forest.total_tokens() > config.max_tokens) continue;
                for (const DecodeProblem& problem : config.problems) {
                    for (const DecodeConfig& tiles : config.configs) {
                        try {
                            found.keys.push_back(engine.plan_decode(problem, forest, tiles).kernel_key());
                            ++found.plans;
                        } catch (const Error& error) {
                            const std::string fault = text_of(problem) + ": " + error.what();
                            if (std::find(found.faults.begin(), found.faults.end(), fault) == found.faults.end())
                                found.faults.push_back(fault);
                        }
                    }
                }
            }
        }
        found.sort_out();  // a few keys from many plans
    }
    found.add(packed_keys_of(engine, config));
    return found;
}

KeyList keys_of(Engine& engine, std::span<const TraceProblem> trace) {
    KeyList found;
    for (const TraceProblem& record : trace) {
        try {
            found.keys.push_back(engine.plan_decode(record.problem, record.forest()).kernel_key());
            ++found.plans;
            if (record.target == engine.target()) found.keys.push_back(parse_key(record.key).to_string());
        } catch (const Error& error) {
            found.faults.push_back(text_of(record.problem) + ": " + error.what());
        }
    }
    found.sort_out();
    return found;
}

}  // namespace sapwood
