// SPDX-License-Identifier: Apache-2.0
#include "engine/trace.h"

#include <algorithm>
#include <cmath>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <tuple>

#include "base/error.h"
#include "engine/trace_lines.h"
#include "sapwood/types.h"
#include "tune/config_fields.h"
#include "tune/config_json.h"

namespace sapwood {
namespace {

using nlohmann::json;
constexpr int kTraceSchema = 1;
constexpr const char* kBuckets = "half-octaves/1";
constexpr std::int64_t kMaxNodes = 1 << 24;  // of a forest that is built again

TraceProblem problem_from(const json& line) {
    TraceProblem record;
    const json &problem = line.at("problem"), &config = line.at("config");
    const std::string kv_dtype = problem.value("kv_dtype", kv_dtype_name(KvDType::as_q));
    if (kv_dtype != kv_dtype_name(KvDType::as_q) && kv_dtype != kv_dtype_name(KvDType::e4m3))
        raise(ErrorCode::kIo, "kv_dtype \"" + kv_dtype + "\" is neither as_q nor fp8_e4m3");
    record.problem = {.q_heads = problem.at("q_heads"),
                      .kv_heads = problem.at("kv_heads"),
                      .head_dim = problem.at("head_dim"),
                      .head_dim_v = problem.at("head_dim_v"),
                      .dtype = traced_dtype(problem.at("dtype")),
                      .kv_dtype = kv_dtype == kv_dtype_name(KvDType::e4m3) ? KvDType::e4m3 : KvDType::as_q,
                      .page_size = problem.at("page_size"),
                      .scale = problem.at("scale"),
                      .softcap = problem.at("softcap"),
                      .mask = problem.value("mask", false)};
    for (const tune::ConfigField& field : tune::config_fields())
        tune::set_from_json(record.config, field.name, config.at(field.name));
    record.target = line.at("target"), record.key = line.at("key");
    record.requests = line.at("requests"), record.tokens = line.at("tokens"), record.path_tokens = line.at("path_tokens");
    record.planned = line.at("planned"), record.updated = line.at("updated"), record.launched = line.at("launched");
    record.pathless = line.at("pathless");
    std::int64_t nodes = 0;
    for (const json& entry : line.at("tree")) {
        const TraceNode node{entry.at(0), entry.at(1), entry.at(2), entry.at(3)};
        const auto id = static_cast<std::int32_t>(record.tree.size());
        if (node.parent < -1 || node.parent >= id || node.tokens < 0 || node.requests < 0 || node.copies < 1 ||
            (node.parent >= 0 && record.tree[static_cast<std::size_t>(node.parent)].copies != 1) ||
            (nodes += std::int64_t{node.copies} * (1 + node.requests)) > kMaxNodes)
            raise(ErrorCode::kIo, "node " + std::to_string(id) + " of the tree does not fit those before it");
        record.tree.push_back(node);
    }
    return record;
}

}  // namespace

int trace_bucket(std::int64_t count) noexcept {
    return count <= 0 ? -1 : static_cast<int>(std::lround(2 * std::log2(static_cast<double>(count))));
}

std::vector<TraceNode> trace_tree(const Forest& forest, std::int32_t* pathless) {
    const auto capacity = static_cast<std::size_t>(forest.node_capacity());
    std::vector<std::int32_t> requests(capacity, 0), depth(capacity, -1), place(capacity, -1);
    std::vector<char> wanted(capacity, 0), parent(capacity, 0);
    *pathless = 0;
    for (std::int32_t r = 0; r < forest.request_capacity(); ++r) {
        if (!forest.request_alive(r)) continue;
        const std::int32_t node = forest.request_node(r);
        if (node == Forest::kNoNode) {
            ++*pathless;
            continue;
        }
        ++requests[static_cast<std::size_t>(node)];
        for (std::int32_t at = node; at >= 0 && !wanted[static_cast<std::size_t>(at)]; at = forest.node(at).parent)
            wanted[static_cast<std::size_t>(at)] = 1;
    }
    std::vector<std::int32_t> ids, chain;
    for (std::size_t id = 0; id < capacity; ++id) {
        if (!wanted[id]) continue;
        ids.push_back(static_cast<std::int32_t>(id));
        for (auto at = static_cast<std::int32_t>(id); at >= 0 && depth[static_cast<std::size_t>(at)] < 0;
             at = forest.node(at).parent)
            chain.push_back(at);
        for (; !chain.empty(); chain.pop_back()) {
            const std::int32_t above = forest.node(chain.back()).parent;
            depth[static_cast<std::size_t>(chain.back())] = above < 0 ? 0 : depth[static_cast<std::size_t>(above)] + 1;
            if (above >= 0) parent[static_cast<std::size_t>(above)] = 1;
        }
    }
    // Parents first, siblings side by side, those alike next to each other.
    std::vector<TraceNode> tree;
    std::stable_sort(ids.begin(), ids.end(), [&](std::int32_t a, std::int32_t b) {
        const auto rank = [&](std::int32_t id) {
            const Node node = forest.node(id);
            const auto at = static_cast<std::size_t>(id);
            return std::tuple(depth[at], node.parent, parent[at], node.tokens, requests[at]);
        };
        return rank(a) < rank(b);
    });
    bool last_childless = false;
    for (const std::int32_t id : ids) {
        const Node& node = forest.node(id);
        const auto at = static_cast<std::size_t>(id);
        const std::int32_t above = node.parent < 0 ? -1 : place[static_cast<std::size_t>(node.parent)];
        if (!parent[at] && !tree.empty() && last_childless) {
            TraceNode& last = tree.back();
            if (last.parent == above && last.tokens == node.tokens && last.requests == requests[at]) {
                ++last.copies;
                continue;
            }
        }
        last_childless = !parent[at];
        place[at] = static_cast<std::int32_t>(tree.size());
        tree.push_back({above, node.tokens, requests[at], 1});
    }
    return tree;
}

Forest TraceProblem::forest() const {
    const std::int64_t page = std::max(1, problem.page_size);
    std::vector<Node> nodes;
    std::vector<std::int32_t> request_nodes(static_cast<std::size_t>(pathless), Forest::kNoNode), first(tree.size());
    std::int64_t position = 0;
    for (std::size_t i = 0; i < tree.size(); ++i) {
        first[i] = static_cast<std::int32_t>(nodes.size());
        const std::int32_t above = tree[i].parent < 0 ? -1 : first[static_cast<std::size_t>(tree[i].parent)];
        for (std::int32_t copy = 0; copy < tree[i].copies; ++copy) {
            request_nodes.insert(request_nodes.end(), static_cast<std::size_t>(tree[i].requests),
                                 static_cast<std::int32_t>(nodes.size()));
            nodes.push_back({above, tree[i].tokens, position});
            position += (tree[i].tokens + page - 1) / page * page;
        }
    }
    return Forest::from_nodes(nodes, request_nodes);
}

std::string write_trace(const std::vector<TraceProblem>& problems, std::uint64_t dropped) {
    std::string text = json{{"sapwood_trace", kTraceSchema}, {"buckets", kBuckets}, {"dropped", dropped}}.dump() + "\n";
    for (const TraceProblem& record : problems) {
        const DecodeProblem& problem = record.problem;
        json tree = json::array();
        for (const TraceNode& node : record.tree) tree.push_back({node.parent, node.tokens, node.requests, node.copies});
        json given = {{"q_heads", problem.q_heads},       {"kv_heads", problem.kv_heads},       {"head_dim", problem.head_dim},
                      {"head_dim_v", problem.head_dim_v}, {"dtype", dtype_name(problem.dtype)}, {"page_size", problem.page_size},
                      {"scale", problem.scale},           {"softcap", problem.softcap}};
        if (problem.mask) given["mask"] = true;  // the tree's drafts are nodes whose requests see all of it
        if (problem.kv_dtype != KvDType::as_q) given["kv_dtype"] = kv_dtype_name(problem.kv_dtype);
        const json line = {{"problem", given},
                           {"config", tune::config_json(record.config)},
                           {"target", record.target},
                           {"key", record.key},
                           {"requests", record.requests},
                           {"tokens", record.tokens},
                           {"path_tokens", record.path_tokens},
                           {"planned", record.planned},
                           {"updated", record.updated},
                           {"launched", record.launched},
                           {"pathless", record.pathless},
                           {"tree", tree}};
        text += line.dump() + "\n";
    }
    return text;
}

void read_trace_lines(const std::filesystem::path& path, const std::function<void(const json&)>& take) {
    std::ifstream in(path);
    if (!in) raise(ErrorCode::kIo, "cannot read the trace " + path.string());
    std::size_t number = 0;
    for (std::string text; std::getline(in, text);) {
        ++number;
        try {
            const json line = json::parse(text);
            if (number > 1) {
                take(line);
            } else if (line.at("sapwood_trace").get<int>() != kTraceSchema) {
                raise(ErrorCode::kIo,
                      "schema " + line.at("sapwood_trace").dump() + "; this reader knows " + std::to_string(kTraceSchema));
            }
        } catch (const std::exception& error) {
            raise(ErrorCode::kIo, "trace " + path.string() + ", line " + std::to_string(number) + ": " + error.what());
        }
    }
    if (number == 0) raise(ErrorCode::kIo, "trace " + path.string() + " is empty");
}

DType traced_dtype(const json& name) {
    const auto text = name.get<std::string>();
    if (text != "fp16" && text != "bf16") raise(ErrorCode::kIo, "dtype \"" + text + "\" is neither fp16 nor bf16");
    return text == "fp16" ? DType::fp16 : DType::bf16;
}

std::vector<TraceProblem> read_trace(const std::filesystem::path& path) {
    std::vector<TraceProblem> problems;
    read_trace_lines(path, [&](const json& line) {
        if (!line.contains(kPackField)) problems.push_back(problem_from(line));
    });
    return problems;
}

}  // namespace sapwood
