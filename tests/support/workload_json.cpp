// SPDX-License-Identifier: Apache-2.0
// The JSON side of workload.h, apart because the JSON header is the slowest thing to compile here.
#include <algorithm>
#include <fstream>
#include <functional>
#include <nlohmann/json.hpp>

#include "engine/trace.h"
#include "sapwood/error.h"
#include "support/workload.h"

namespace sapwood::support {
namespace {

using nlohmann::json;

[[noreturn]] void fail(const std::string& text) { throw Error(ErrorCode::kIo, text); }

std::vector<TreeNode> read_levels(const json& levels) {
    std::vector<TreeNode> nodes;
    std::int64_t above = 0, above_begin = 0;
    for (const json& level : levels) {
        const auto n = level.at("nodes").get<std::int64_t>();
        const auto tokens = level.at("tokens").get<std::int64_t>();
        const auto fanout = level.value("fanout", std::int64_t{0});
        const auto begin = static_cast<std::int64_t>(nodes.size());
        for (std::int64_t j = 0; j < n; ++j) {
            std::int64_t parent = -1;
            if (above > 0) {
                const std::int64_t place = fanout > 0 ? j / fanout : j * above / n;
                if (place >= above)
                    fail("fanout " + std::to_string(fanout) + " needs more than " + std::to_string(above) + " parents");
                parent = above_begin + place;
            }
            nodes.push_back({static_cast<std::int32_t>(parent), tokens, 0});
        }
        above = n;
        above_begin = begin;
    }
    return nodes;
}

std::vector<TreeNode> read_tree(const json& tree) {
    std::vector<TreeNode> nodes;
    bool any_requests = false;
    if (tree.contains("levels")) {
        nodes = read_levels(tree.at("levels"));
    } else if (tree.contains("nodes")) {
        for (const json& entry : tree.at("nodes")) {
            const TreeNode node{entry.at("parent").get<std::int32_t>(), entry.at("tokens").get<std::int64_t>(),
                                entry.value("requests", std::int32_t{0})};
            const auto id = static_cast<std::int32_t>(nodes.size());
            if (node.parent < -1 || node.parent >= id)
                fail("node " + std::to_string(id) + " has parent " + std::to_string(node.parent) +
                     ", which is not below its own id");
            any_requests = any_requests || entry.contains("requests");
            nodes.push_back(node);
        }
    } else {
        fail("a decode tree is given by 'levels' or 'nodes'");
    }
    if (!any_requests) {  // then every leaf has one
        std::vector<char> leaf(nodes.size(), 1);
        for (const TreeNode& node : nodes)
            if (node.parent >= 0) leaf[static_cast<std::size_t>(node.parent)] = 0;
        for (std::size_t i = 0; i < nodes.size(); ++i) nodes[i].requests = leaf[i];
    }
    return nodes;
}

DType read_dtype(const std::string& name) {
    if (name == "fp16") return DType::fp16;
    if (name == "bf16") return DType::bf16;
    fail("dtype '" + name + "' is neither fp16 nor bf16");
}

/// A 16-bit type here is Q's.
KvDType read_kv_dtype(const std::string& name, const std::vector<DType>& q) {
    if (name == kv_dtype_name(KvDType::e4m3)) return KvDType::e4m3;
    for (const DType dtype : q)
        if (name == dtype_name(dtype)) return KvDType::as_q;
    fail("kv_dtype '" + name + "' is neither fp8_e4m3 nor one of the case's dtypes");
}

Layout read_layout(const std::string& name) {
    if (name == "random") return Layout::random;
    if (name == "contiguous") return Layout::contiguous;
    fail("layout '" + name + "' is neither random nor contiguous");
}

Check read_check(const json& given) {
    Check check;
    const auto take = [&](const char* name, std::optional<std::int64_t>& to) {
        if (given.contains(name)) to = given.at(name).get<std::int64_t>();
    };
    take("nodes", check.nodes);
    take("requests", check.requests);
    take("unique_tokens", check.unique_tokens);
    take("used_tokens", check.used_tokens);
    take("path_tokens", check.path_tokens);
    take("empty_requests", check.empty_requests);
    take("max_depth", check.max_depth);
    if (given.contains("pages"))
        for (const auto& [size, pages] : given.at("pages").items()) check.pages[std::stoi(size)] = pages.get<std::int64_t>();
    return check;
}

/// The list fields of a case.
CaseSpec read_shapes(const std::function<const json&(const char*)>& field, const json& kv_dtypes = json::array()) {
    CaseSpec spec;
    spec.dtypes.clear(), spec.heads.clear(), spec.layouts.clear();
    for (const json& dtype : field("dtype")) spec.dtypes.push_back(read_dtype(dtype));
    for (const json& heads : field("heads"))
        spec.heads.emplace_back(heads.at("q").get<std::int32_t>(), heads.at("kv").get<std::int32_t>());
    for (const json& layout : field("layout")) spec.layouts.push_back(read_layout(layout));
    if (!kv_dtypes.empty()) spec.kv_dtypes.clear();
    for (const json& dtype : kv_dtypes) spec.kv_dtypes.push_back(read_kv_dtype(dtype, spec.dtypes));
    spec.head_dims = field("head_dim").get<std::vector<std::int32_t>>();
    spec.page_sizes = field("page_size").get<std::vector<std::int32_t>>();
    return spec;
}

CaseSpec read_case(const json& entry, const json& defaults) {
    const auto field = [&](const char* name) -> const json& { return entry.contains(name) ? entry.at(name) : defaults.at(name); };
    CaseSpec spec = read_shapes(field);
    spec.seed = entry.at("seed").get<std::uint64_t>();
    spec.set = entry.value("set", "");
    spec.note = entry.value("note", "");
    spec.nodes = read_tree(entry.at("tree"));
    spec.random_requests = field("request_order").get<std::string>() == "random";
    if (entry.contains("check")) spec.check = read_check(entry.at("check"));
    return spec;
}

/// Sequences of a prefix and a draft tree each.
CaseSpec read_spec_case(const json& entry, const json& defaults, const json& trees) {
    const auto field = [&](const char* name) -> const json& { return entry.contains(name) ? entry.at(name) : defaults.at(name); };
    CaseSpec spec = read_shapes(field, entry.value("kv_dtype", defaults.value("kv_dtype", json::array())));
    spec.seed = entry.at("seed").get<std::uint64_t>();
    spec.set = entry.value("set", "");
    const auto parents = trees.at(entry.at("tree").get<std::string>()).at("parents").get<std::vector<std::int32_t>>();
    for (std::size_t i = 0; i < parents.size(); ++i) {
        if (parents[i] >= static_cast<std::int32_t>(i)) fail("draft token " + std::to_string(i) + " comes before its parent");
    }
    const json& prefix = entry.at("prefix");
    for (std::int32_t b = 0; b < entry.at("batch").get<std::int32_t>(); ++b) {
        spec.nodes.push_back({-1, (prefix.is_array() ? prefix.at(static_cast<std::size_t>(b)) : prefix).get<std::int64_t>(), 0});
        spec.drafts.push_back({b, parents});
    }
    if (entry.contains("check")) spec.check = read_check(entry.at("check"));
    return spec;
}

/// Sequences of a prefix and the one static tree each, a node a token.
CaseSpec read_fst_case(const json& entry, const json& defaults) {
    const auto field = [&](const char* name) -> const json& { return entry.contains(name) ? entry.at(name) : defaults.at(name); };
    CaseSpec spec;
    spec.dtypes.clear(), spec.heads.clear();
    for (const json& dtype : field("dtype")) spec.dtypes.push_back(read_dtype(dtype));
    for (const json& heads : field("heads"))
        spec.heads.emplace_back(heads.at("q").get<std::int32_t>(), heads.at("kv").get<std::int32_t>());
    spec.head_dims = field("head_dim").get<std::vector<std::int32_t>>();
    spec.layouts = {Layout::contiguous};
    spec.seed = entry.at("seed").get<std::uint64_t>();
    for (const TreeNode& node : read_levels(entry.at("tree").at("levels"))) spec.static_parents.push_back(node.parent);
    const auto prefix = entry.at("prefix").get<std::int64_t>();
    for (std::int32_t b = 0; b < entry.at("batch").get<std::int32_t>(); ++b) {
        const auto root = prefix > 0 ? static_cast<std::int32_t>(spec.nodes.size()) : -1;
        if (prefix > 0) spec.nodes.push_back({-1, prefix, 0});
        const auto first = static_cast<std::int32_t>(spec.nodes.size());
        for (const std::int32_t parent : spec.static_parents) spec.nodes.push_back({parent < 0 ? root : first + parent, 1, 1});
    }
    if (entry.contains("check")) spec.check = read_check(entry.at("check"));
    return spec;
}

std::vector<CaseSpec> cases_of(const std::vector<TraceProblem>& trace) {
    std::vector<CaseSpec> specs;
    for (const TraceProblem& record : trace) {
        const DecodeProblem& problem = record.problem;
        CaseSpec spec;
        spec.name.append("T").append(std::to_string(specs.size() + 1));
        spec.set = record.target;
        spec.note = "launched " + std::to_string(record.launched) + " times";
        spec.seed = specs.size() + 1;
        spec.dtypes = {problem.dtype};
        spec.kv_dtypes = {problem.kv_dtype};
        spec.head_dims = {problem.head_dim};
        spec.heads = {{problem.q_heads, problem.kv_heads}};
        // Without a page table: contiguous pages of one token, which BuildOptions::runs_without_pages then leaves out.
        spec.page_sizes = {std::max(1, problem.page_size)};
        spec.layouts = {problem.page_size == 0 ? Layout::contiguous : Layout::random};
        spec.head_dim_v = problem.head_dim_v, spec.scale = problem.scale, spec.softcap = problem.softcap;
        spec.mask = problem.mask;
        std::vector<std::int32_t> first;  // node of each of the trace's
        for (const TraceNode& node : record.tree) {
            first.push_back(static_cast<std::int32_t>(spec.nodes.size()));
            const std::int32_t parent = node.parent < 0 ? -1 : first[static_cast<std::size_t>(node.parent)];
            spec.nodes.insert(spec.nodes.end(), static_cast<std::size_t>(node.copies), {parent, node.tokens, node.requests});
        }
        specs.push_back(std::move(spec));
    }
    return specs;
}

}  // namespace

std::vector<CaseSpec> load_workload(const std::filesystem::path& file) {
    if (file.extension() == ".jsonl") return cases_of(read_trace(file));
    std::ifstream in(file);
    if (!in) fail("cannot read the workload file " + file.string());
    std::string where = file.string();
    try {
        const json root = json::parse(in);
        if (root.at("schema").get<int>() != 1) fail("schema " + root.at("schema").dump() + " is not known; this reader knows 1");
        const auto kind = root.at("kind").get<std::string>();
        if (kind != "decode" && kind != "spec" && kind != "fst")
            fail("kind '" + kind + "': only decode, spec and fst workloads can be run");
        const json defaults = root.value("defaults", json::object());
        std::vector<CaseSpec> specs;
        for (const json& entry : root.at("cases")) {
            const auto name = entry.at("name").get<std::string>();
            where = file.string() + ", case " + name;
            specs.push_back(kind == "spec"  ? read_spec_case(entry, defaults, root.at("trees"))
                            : kind == "fst" ? read_fst_case(entry, defaults)
                                            : read_case(entry, defaults));
            specs.back().name = name;
        }
        return specs;
    } catch (const json::exception& error) {
        fail(where + ": " + error.what());
    } catch (const Error& error) {
        fail(where + ": " + error.what());
    }
}

}  // namespace sapwood::support
