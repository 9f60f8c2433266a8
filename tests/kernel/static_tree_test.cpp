// SPDX-License-Identifier: Apache-2.0
// Static trees through plan and kernel, against the fp64 oracle, on both targets. FST's published test, its prefix variant
// included, and what its kernel gets wrong (semantics, 3.5): keys of the prefix counted twice, prefixes and row counts that are no
// multiple.
#include <doctest/doctest.h>

#include <cmath>
#include <limits>

#include "kernel/decode_cases.h"
#include "oracle/decode_oracle.h"
#include "support/compare.h"
#include "support/fst_tree.h"
#include "support/gpu.h"
#include "support/half.h"
#include "support/random_drafts.h"
#include "support/rng.h"

using namespace sapwood;
using namespace sapwood::test;
using support::Dice;

namespace {

/// Queries and keys of some trees, each sequence behind a prefix; heads outermost (FST's [heads, rows, dim]) or innermost.
struct StaticCase {
    const char* name;
    DType dtype;
    std::int32_t head_dim, group, kv_heads, page_size;
    std::vector<std::vector<std::int32_t>> parents;
    struct Sequence {
        std::int32_t tree;
        std::int64_t prefix;
    };
    std::vector<Sequence> sequences;
    bool heads_first = false;
    DecodeConfig config{};
    float scale = 0;
};

class StaticScene {
public:
    explicit StaticScene(const StaticCase& given) : which(given) {
        const std::int64_t page = std::max(which.page_size, 1);
        for (const auto& tree : which.parents) trees.push_back(StaticTree::from_parents(tree));
        std::int64_t position = 0, rows = 0;
        for (const auto& [tree, prefix] : which.sequences) {
            const std::int64_t count = std::ssize(which.parents[static_cast<std::size_t>(tree)]);
            sequences.push_back({position, prefix, position + prefix, rows, tree});
            position = (position + prefix + count + page - 1) / page * page;
            rows += count;
        }
        kv_rows = position + page;
        q_rows = rows;
        if (which.page_size > 0) pages = support::perm(5, support::Stream::pages, kv_rows / page);
        const DecodeProblem p = problem();
        q = make(support::Stream::q, q_rows, p.q_heads);
        k = make(support::Stream::k, kv_rows, p.kv_heads);
        v = make(support::Stream::v, kv_rows, p.kv_heads);
        out.assign(q.size(), support::kNan16);
        lse.assign(static_cast<std::size_t>(q_rows * p.q_heads), std::numeric_limits<float>::quiet_NaN());
        tensors = {.q = q.data(), .k = k.data(), .v = v.data(), .out = out.data(), .lse = lse.data()};
        if (which.page_size > 0) tensors.page_table = pages.data();
        if (which.heads_first) {
            const std::int64_t d = which.head_dim;
            tensors.q_request_stride = tensors.out_request_stride = tensors.k_token_stride = tensors.v_token_stride = d;
            tensors.q_head_stride = tensors.out_head_stride = q_rows * d;
            tensors.k_head_stride = tensors.v_head_stride = kv_rows * d;
        }
    }

    DecodeProblem problem() const {
        return {.q_heads = which.group * which.kv_heads,
                .kv_heads = which.kv_heads,
                .head_dim = which.head_dim,
                .head_dim_v = which.head_dim,
                .dtype = which.dtype,
                .page_size = which.page_size,
                .scale = which.scale};
    }

    std::string fault() const {
        const DecodeProblem p = problem();
        oracle::DecodeResult expected;
        expected.out.resize(q.size());
        expected.lse.resize(lse.size());
        for (const StaticTreeSequence& s : sequences) {
            for (std::int32_t i = 0; i < trees[static_cast<std::size_t>(s.tree)].rows(); ++i) {
                std::vector<std::int64_t> keys;
                const auto see = [&](std::int64_t at) {
                    keys.push_back(p.page_size == 0
                                       ? at
                                       : pages[static_cast<std::size_t>(at / p.page_size)] * std::int64_t{p.page_size} +
                                             at % p.page_size);
                };
                for (std::int64_t t = 0; t < s.prefix_tokens; ++t) see(s.prefix_begin + t);
                for (std::int32_t node = i; node >= 0;
                     node = which.parents[static_cast<std::size_t>(s.tree)][static_cast<std::size_t>(node)])
                    see(s.tree_begin + node);
                const auto row = static_cast<std::int32_t>(s.query_begin + i);
                expected.requests.push_back(row);
                for (std::int32_t h = 0; h < p.q_heads; ++h) {
                    const auto at = static_cast<std::size_t>(std::int64_t{row} * p.q_heads + h);
                    oracle::decode_one(p, tensors, keys, row, h, expected.out.data() + at * static_cast<std::size_t>(p.head_dim),
                                       expected.lse.data() + at);
                }
            }
        }
        const support::Comparison comparison = support::compare(p, tensors, expected);
        return comparison.passes(p.dtype) ? "" : comparison.to_string();
    }

    StaticCase which;
    std::vector<StaticTree> trees;
    std::vector<StaticTreeSequence> sequences;
    std::int64_t kv_rows = 0, q_rows = 0;
    std::vector<std::int32_t> pages;
    std::vector<std::uint16_t> q, k, v, out;
    std::vector<float> lse;
    DecodeTensors tensors;

private:
    std::vector<std::uint16_t> make(support::Stream stream, std::int64_t rows, std::int64_t heads) const {
        std::vector<std::uint16_t> values(static_cast<std::size_t>(rows * heads * which.head_dim));
        for (std::size_t i = 0; i < values.size(); ++i) values[i] = support::round_to(which.dtype, support::value(9, stream, i));
        return values;
    }
};

void run(const Target& target, StaticScene& scene) {
    DecodePlan plan = target.engine->plan_static_tree(scene.problem(), scene.trees, scene.sequences, scene.which.config);
    target.engine->prepare(plan);
    if (!target.device) return target.engine->launch(plan, scene.tensors);
    std::vector<std::uint64_t> owned;
    const auto copy = [&](const void* from, std::size_t bytes) {
        owned.push_back(target.device->allocate(std::max<std::size_t>(bytes, 16)));
        target.device->copy_to_device(owned.back(), from, bytes, nullptr);
        return reinterpret_cast<void*>(owned.back());
    };
    DecodeTensors tensors = scene.tensors;
    tensors.q = copy(scene.q.data(), scene.q.size() * 2);
    tensors.k = copy(scene.k.data(), scene.k.size() * 2);
    tensors.v = copy(scene.v.data(), scene.v.size() * 2);
    tensors.out = copy(scene.out.data(), scene.out.size() * 2);
    tensors.lse = static_cast<float*>(copy(scene.lse.data(), scene.lse.size() * 4));
    if (scene.tensors.page_table)
        tensors.page_table = static_cast<const std::int32_t*>(copy(scene.pages.data(), scene.pages.size() * 4));
    target.device->synchronize(nullptr);
    target.engine->launch(plan, tensors);
    target.device->synchronize(nullptr);
    target.device->copy_to_host(scene.out.data(), reinterpret_cast<std::uint64_t>(tensors.out), scene.out.size() * 2, nullptr);
    target.device->copy_to_host(scene.lse.data(), reinterpret_cast<std::uint64_t>(tensors.lse), scene.lse.size() * 4, nullptr);
    for (const std::uint64_t address : owned) target.device->free(address);
}

std::vector<std::int32_t> random_tree(std::uint64_t seed, std::int32_t count) {
    Dice dice(seed);
    return support::random_parents(dice, count);
}

void matches_oracle(const Target& target) {
    constexpr DType fp16 = DType::fp16, bf16 = DType::bf16;
    constexpr Mainloop wgmma = Mainloop::wgmma;
    const auto fst = support::fst_parents(5);  // 252 nodes: no multiple of a block
    const std::vector<StaticCase> cases = {
        {"FST", fp16, 64, 1, 4, 0, {fst}, {{0, 0}}, true},
        {"FST, shared prefix", fp16, 64, 1, 2, 0, {fst}, {{0, 256}}, true, {}, 0.5f},
        {"prefix of any length", fp16, 64, 1, 2, 0, {fst}, {{0, 77}}, true},
        {"a tree each", bf16, 64, 1, 2, 0, {random_tree(1, 130), random_tree(2, 31)}, {{0, 5}, {1, 0}, {0, 33}}},
        {"group", bf16, 128, 4, 1, 0, {random_tree(3, 75)}, {{0, 40}, {0, 0}}},
        {"group, paged", fp16, 128, 5, 1, 16, {random_tree(4, 60)}, {{0, 19}, {0, 100}}},
        {"two wide blocks an SM", fp16, 64, 1, 2, 0, {fst}, {{0, 0}, {0, 9}}, true, {.warps = 8, .blocks = 2}},
        {"two wide blocks an SM, group, paged",
         bf16,
         64,
         6,
         1,
         1,
         {random_tree(7, 150)},
         {{0, 3}},
         false,
         {.warps = 8, .blocks = 2}},
        {"narrow", fp16, 64, 2, 1, 1, {random_tree(5, 90)}, {{0, 50}}, false, {.warps = 4, .block_kv = 32}},
        {"warpgroup", fp16, 64, 1, 2, 0, {fst}, {{0, 300}}, true, {.mainloop = wgmma}},
        {"warpgroup", bf16, 128, 8, 1, 64, {random_tree(6, 70)}, {{0, 65}, {0, 0}}, false, {.mainloop = wgmma}},
        {"chain",
         bf16,
         64,
         1,
         1,
         0,
         {[] {
             std::vector<std::int32_t> chain;
             for (std::int32_t i = 0; i < 300; ++i) chain.push_back(i - 1);
             return chain;
         }()},
         {{0, 0}}},
        {"one node", fp16, 64, 1, 1, 0, {{-1}}, {{0, 0}, {0, 3}}},
    };
    for (const StaticCase& which : cases) {
        CAPTURE(which.name);
        CAPTURE(dtype_name(which.dtype));
        StaticScene scene(which);
        run(target, scene);
        CHECK(scene.fault() == "");
    }
}

/// The same rows from FST's tensors, pad rows and all, as the published test has them.
void fst_tensors_agree(const Target& target) {
    const auto parents = support::fst_parents(5);
    StaticScene by_parents({"", DType::fp16, 64, 1, 2, 0, {parents}, {{0, 64}}, true, {}, 0.5f});
    run(target, by_parents);
    CHECK(by_parents.fault() == "");
    StaticScene by_tensors(by_parents.which);
    const auto rows = static_cast<std::int32_t>(parents.size());
    const support::FstTensors tensors = support::fst_tensors(parents, rows, 64, 64);
    by_tensors.trees = {StaticTree::from_fst(tensors.ancestor_idx, tensors.ancestor_mask, tensors.leaf_idx, rows, 64, 64)};
    run(target, by_tensors);
    CHECK(by_tensors.fault() == "");
}

}  // namespace

SAPWOOD_ON_BOTH("static trees match the oracle", matches_oracle)
SAPWOOD_ON_BOTH("static trees: FST's tensors give FST's rows", fst_tensors_agree)
