// SPDX-License-Identifier: Apache-2.0
#include "support/packed_workload.h"

#include <fstream>
#include <nlohmann/json.hpp>

#include "sapwood/error.h"

namespace sapwood::support {
namespace {

using nlohmann::json;

/// A segment and what hangs on it, `repeat` times, depth first.
void add_segment(const json& segment, std::int32_t parent, std::vector<Segment>& to) {
    for (auto left = segment.value("repeat", std::int64_t{1}); left > 0; --left) {
        const auto id = static_cast<std::int32_t>(to.size());
        to.push_back({parent, segment.at("tokens").get<std::int64_t>()});
        for (const json& child : segment.value("children", json::array())) add_segment(child, id, to);
    }
}

void add_tree(const json& tree, std::vector<Segment>& to) {
    if (!tree.contains("nodes")) return add_segment(tree, -1, to);
    const auto base = static_cast<std::int32_t>(to.size());
    for (const json& node : tree.at("nodes")) {
        const auto parent = node.at("parent").get<std::int32_t>();
        to.push_back({parent < 0 ? -1 : base + parent, node.at("tokens").get<std::int64_t>()});
    }
}

void expect(const PackedSpec& spec, const char* what, std::int64_t built, const std::optional<std::int64_t>& given) {
    if (!given || *given == built) return;
    throw Error(ErrorCode::kInternal, "workload case " + spec.name + ": " + what + " is " + std::to_string(built) +
                                          ", the file says " + std::to_string(*given));
}

void verify(const PackedSpec& spec) {
    const Pack pack = Pack::from_segments(spec.segments);
    std::int64_t sequences = 0, in_sequence = 0, longest = 0;
    for (const Segment& segment : spec.segments) {
        if (segment.parent < 0) ++sequences, in_sequence = 0;
        longest = std::max(longest, in_sequence += segment.tokens);
    }
    expect(spec, "sequences", sequences, spec.sequences);
    expect(spec, "nodes", static_cast<std::int64_t>(spec.segments.size()), spec.nodes);
    expect(spec, "unique_tokens", pack.rows(), spec.unique_tokens);
    expect(spec, "max_seqlen", longest, spec.max_seqlen);
    if (!spec.block_causal) {
        expect(spec, "visible_pairs", pack.visible_pairs(), spec.visible_pairs);
        expect(spec, "dup_pairs", repeated_pairs(spec.segments), spec.dup_pairs);
    }
}

PackedSpec read_packed_case(const json& entry, const json& defaults) {
    json one = defaults;
    one.update(entry);
    PackedSpec spec;
    spec.name = one.at("name");
    spec.set = one.value("set", "");
    spec.note = one.value("note", "");
    spec.seed = one.at("seed");
    spec.block_causal = one.at("mask") == "block_causal";
    if (!spec.block_causal && one.at("mask") != "causal_tree")
        throw Error(ErrorCode::kIo, "mask " + one.at("mask").dump() + " is neither causal_tree nor block_causal");
    for (const json& tree : one.at("batch")) add_tree(tree, spec.segments);
    for (const std::string name : one.at("dtype")) spec.dtypes.push_back(name == "fp16" ? DType::fp16 : DType::bf16);
    spec.head_dims = one.at("head_dim").get<std::vector<std::int32_t>>();
    for (const json& pair : one.at("heads")) spec.heads.emplace_back(pair.at("q"), pair.at("kv"));
    const auto number = [&](const char* name, std::optional<std::int64_t>& to) {
        if (const json check = one.value("check", json::object()); check.contains(name)) to = check.at(name).get<std::int64_t>();
    };
    number("sequences", spec.sequences);
    number("nodes", spec.nodes);
    number("unique_tokens", spec.unique_tokens);
    number("visible_pairs", spec.visible_pairs);
    number("dup_pairs", spec.dup_pairs);
    number("max_seqlen", spec.max_seqlen);
    return spec;
}

json parse(const std::filesystem::path& file) {
    std::ifstream in(file);
    if (!in) throw Error(ErrorCode::kIo, "cannot read the workload " + file.string());
    return json::parse(in, nullptr, /*allow_exceptions=*/false);
}

}  // namespace

std::string PackedVariant::to_string() const {
    return std::string(dtype_name(dtype)) + " d" + std::to_string(head_dim) + " " + std::to_string(q_heads) + "/" +
           std::to_string(kv_heads);
}

std::vector<PackedVariant> variants(const PackedSpec& spec) {
    std::vector<PackedVariant> all;
    for (const DType dtype : spec.dtypes)
        for (const std::int32_t dim : spec.head_dims)
            for (const auto& [q, kv] : spec.heads) all.push_back({dtype, dim, q, kv});
    return all;
}

bool is_packed_workload(const std::filesystem::path& file) {
    if (file.extension() != ".json") return false;
    const json root = parse(file);
    return root.is_object() && root.value("kind", "") == "training";
}

std::vector<PackedSpec> load_packed_workload(const std::filesystem::path& file) {
    const json root = parse(file);
    std::string where = "workload " + file.string();
    try {
        if (root.at("kind") != "training" || root.at("schema") != 1)
            throw Error(ErrorCode::kIo, "it is not of kind training, schema 1");
        std::vector<PackedSpec> specs;
        for (const json& entry : root.at("cases")) {
            where = "workload " + file.string() + ", case " + entry.value("name", "without a name");
            specs.push_back(read_packed_case(entry, root.at("defaults")));
            verify(specs.back());
        }
        return specs;
    } catch (const json::exception& error) {
        throw Error(ErrorCode::kIo, where + ": " + error.what());
    }
}

std::int64_t repeated_pairs(std::span<const Segment> segments) {
    std::vector<std::int64_t> path(segments.size());
    std::vector<char> inner(segments.size());
    for (std::size_t i = 0; i < segments.size(); ++i) {
        const std::int32_t parent = segments[i].parent;
        path[i] = segments[i].tokens + (parent < 0 ? 0 : path[static_cast<std::size_t>(parent)]);
        if (parent >= 0) inner[static_cast<std::size_t>(parent)] = 1;
    }
    std::int64_t pairs = 0;
    for (std::size_t i = 0; i < segments.size(); ++i)
        if (!inner[i]) pairs += path[i] * (path[i] + 1) / 2;
    return pairs;
}

}  // namespace sapwood::support
