// SPDX-License-Identifier: Apache-2.0
// Verify: drafts behind prefixes, against the fp64 oracle and against what they must equal. Each defect of the kernels that did
// this before (semantics: LongSpec, known defects) is absent here by a test.
#include <doctest/doctest.h>

#include <cmath>

#include "kernel/decode_cases.h"
#include "plan/decode_plan.h"
#include "support/compare.h"
#include "support/gpu.h"
#include "support/parallel.h"
#include "support/random_drafts.h"

using namespace sapwood;
using namespace sapwood::test;
using support::Dice;

namespace {

DraftMask tree(std::uint64_t seed, std::int32_t count) {
    Dice dice(seed);
    return DraftMask::from_parents(support::random_parents(dice, count));
}
DraftMask bits(std::uint64_t seed, std::int32_t rows, std::int32_t columns) {
    Dice dice(seed);
    return support::random_mask(dice, rows, columns);
}
DraftMask chain_of(std::int32_t count) {
    std::vector<std::int32_t> parents;
    for (std::int32_t i = 0; i < count; ++i) parents.push_back(i - 1);
    return DraftMask::from_parents(parents);
}
DraftMask star_of(std::int32_t count) {
    std::vector<std::int32_t> parents(static_cast<std::size_t>(count), 0);
    parents[0] = -1;
    return DraftMask::from_parents(parents);
}

/// Ragged: drafts of one row and of many, behind prefixes of their own, shared ones, empty ones and none.
std::vector<DecodeCase> verify_cases() {
    constexpr DType fp16 = DType::fp16, bf16 = DType::bf16;
    constexpr Mainloop wgmma = Mainloop::wgmma;
    constexpr DecodeConfig wide = {.mainloop = wgmma, .block_kv = 128};
    const Tree two = {{-1, 133, 0}, {-1, 61, 1}, {0, 0, 0}};
    std::vector<DecodeCase> cases = {
        {"trees", fp16, 128, 0, 4, 2, 0, two},
        {"trees", bf16, 128, 0, 8, 1, 16, two},
        {"trees", bf16, 64, 0, 1, 2, 1, two},
        {"trees", fp16, 96, 0, 5, 1, 64, two},
        {"trees", bf16, 192, 128, 3, 1, 32, two},
        {"trees", fp16, 256, 0, 4, 1, 0, two},
        {"narrow", fp16, 128, 0, 4, 1, 0, two, {.warps = 4, .block_kv = 32}},
        {"long tiles", bf16, 64, 0, 7, 1, 16, two, {.warps = 4, .block_kv = 128}},
        {"split", bf16, 128, 0, 4, 1, 1, two, {.split = 7}},
        {"warpgroup", fp16, 128, 0, 4, 2, 0, two, {.mainloop = wgmma}},
        {"warpgroup", bf16, 64, 128, 3, 1, 16, two, {.mainloop = wgmma, .split = 5}},
        {"soft-cap", fp16, 128, 0, 4, 1, 1, two, {}, Layout::padded, 0, 2.5f},
        {"warpgroup, wide", fp16, 128, 0, 4, 2, 0, two, wide},
        {"warpgroup, wide", bf16, 64, 128, 3, 1, 16, two, {.mainloop = wgmma, .block_kv = 128, .split = 5}},
        {"soft-cap, warpgroup, wide", bf16, 128, 0, 16, 1, 64, two, wide, Layout::hnd, 0, 2.5f},
        {"soft-cap, warpgroup", bf16, 128, 0, 16, 1, 64, two, {.mainloop = wgmma}, Layout::hnd, 0, 2.5f},
    };
    for (DecodeCase& which : cases)
        which.drafts = {{0, tree(1, 37)}, {1, tree(2, 1)}, {2, bits(3, 20, 33)}, {-1, tree(4, 18)}, {0, tree(5, 5)}};
    const auto add = [&](DecodeCase which, std::vector<TestDraft> drafts) {
        which.drafts = std::move(drafts);
        cases.push_back(std::move(which));
    };
    add({"chain and star", fp16, 128, 0, 4, 1, 0, two}, {{0, chain_of(70)}, {1, star_of(64)}, {-1, chain_of(16)}});
    add({"many rows", bf16, 64, 0, 1, 1, 1, lone(90)}, {{0, tree(6, 300)}});
    add({"many rows, warpgroup", fp16, 64, 0, 2, 1, 0, lone(90), {.mainloop = wgmma}}, {{0, tree(7, 200)}, {0, bits(8, 150, 100)}});
    // More rows than tokens, with LongSpec's causal rule: the first rows see nothing, and have no prefix either.
    const std::vector<std::int64_t> ones(60 * 24, 1);
    add({"rows that see nothing", bf16, 128, 0, 4, 1, 0, lone(40)}, {{-1, DraftMask::from_dense(ones.data(), 60, 24, 0, true)}});
    // Nothing of the first 16 tokens: a tile that is masked wholly comes first.
    std::vector<std::uint8_t> late(40 * 80, 0);
    for (std::size_t r = 0; r < 40; ++r) late[r * 80 + 70 + r % 10] = 1;
    add({"first tile masked", fp16, 128, 0, 4, 1, 0, lone(40)}, {{-1, DraftMask::from_dense(late.data(), 40, 80)}});
    add({"many rows, warpgroup, wide", fp16, 128, 0, 2, 1, 0, lone(90), wide}, {{0, tree(7, 200)}, {0, bits(8, 150, 100)}});
    // Scores that outgrow those before, and two drafts of one item: each warpgroup has a tile that only the other one sees.
    for (const DecodeConfig& config : {DecodeConfig{.mainloop = wgmma}, wide})
        add({"scores of all sizes", fp16, 128, 0, 2, 1, 16, lone(700), config, Layout::nhd, 1.5f},
            {{0, tree(9, 32)}, {0, tree(10, 31)}});
    add({"first tile masked, warpgroup", fp16, 128, 0, 4, 1, 0, lone(40), {.mainloop = wgmma}},
        {{-1, DraftMask::from_dense(late.data(), 40, 80)}});
    return cases;
}

void matches_oracle(const Target& target) {
    const std::vector<DecodeCase> cases = verify_cases();
    support::parallel_for(static_cast<std::int64_t>(cases.size()), 1, [&](std::int64_t begin, std::int64_t) {
        DecodePlan plan = plan_of(target, Scene(cases[static_cast<std::size_t>(begin)]));
        target.engine->prepare(plan);
    });
    for (const DecodeCase& which : cases) {
        CAPTURE(which.to_string());
        Scene scene(which);
        DecodePlan plan = plan_of(target, scene);
        REQUIRE(plan.problem().mask);
        Bound(target, scene).run(plan);
        CHECK(scene.fault() == "");
    }
}

/// A draft's row is a decode request behind a chain of its ancestors.
void trees_are_nodes(const Target& target) {
    DecodeCase which = small_case(DType::fp16);
    which.tree = {{-1, 150, 0}};
    which.pathless = 0;
    const std::vector<std::int32_t> parents = {-1, 0, 0, 1, 1, 2, 4, 6, -1, 8};
    which.drafts = {{0, DraftMask::from_parents(parents)}};
    Scene draft(which);
    which.drafts.clear();
    for (const std::int32_t parent : parents) which.tree.push_back({parent + 1, 1, 1});
    Scene nodes(which);
    for (std::size_t i = 0; i < parents.size(); ++i) {
        nodes.content[i + 1] = draft.content[1] + static_cast<std::int64_t>(i);
        const std::int32_t node = static_cast<std::int32_t>(i) + 1;
        std::int32_t r = 0;
        while (nodes.forest.request_node(r) != node) ++r;
        nodes.query[static_cast<std::size_t>(r)] = draft.forest.draft_first_request(1) + static_cast<std::int32_t>(i);
    }
    nodes.fill();
    run_once(target, draft);
    run_once(target, nodes);
    CHECK(draft.fault() == "");
    CHECK(nodes.fault() == "");
    for (std::size_t i = 0; i < parents.size(); ++i) {
        std::int32_t r = 0;
        while (nodes.forest.request_node(r) != static_cast<std::int32_t>(i) + 1) ++r;
        CHECK(support::relative_error(nodes.row(r), draft.row(draft.forest.draft_first_request(1) +
                                                              static_cast<std::int32_t>(i))) <= support::tolerance(DType::fp16));
    }
}

/// The bits where the draft was made: the same result as from a plan that knows them, from rows of any width.
void masks_on_the_device(const Target& target) {
    for (const std::int64_t words : {0, 3, 8}) {
        CAPTURE(words);
        DecodeCase which = small_case();
        which.drafts = {{0, tree(9, 50)}, {1, bits(10, 12, 90)}};
        Scene known(which);
        which.drafts = {{0, DraftMask::on_device(50, 50)}, {1, DraftMask::on_device(12, 90)}};
        Scene unknown(which);
        const std::int64_t width = words == 0 ? 3 : words;
        std::vector<std::uint32_t> rows(static_cast<std::size_t>(known.forest.request_capacity() * width), 0xdeadbeef);
        for (const TestDraft& draft : known.which.drafts) {
            std::int32_t node = 0;  // its node: the one whose mask this is
            while (known.forest.draft_mask(node) == nullptr || known.forest.draft_mask(node)->columns() != draft.mask.columns())
                ++node;
            for (std::int32_t r = 0; r < draft.mask.rows(); ++r) {
                const auto to = (known.forest.draft_first_request(node) + r) * width;
                std::copy_n(draft.mask.row(r), draft.mask.row_words(), rows.begin() + to);
            }
        }
        run_once(target, known);
        CHECK(known.fault() == "");
        DecodePlan plan = plan_of(target, unknown);
        std::uint64_t copy = 0;
        if (target.device) {
            copy = target.device->allocate(rows.size() * 4);
            target.device->copy_to_device(copy, rows.data(), rows.size() * 4, nullptr);
            target.device->synchronize(nullptr);
        }
        Bound(target, unknown).run([&](DecodeTensors tensors) {
            tensors.mask = target.device ? reinterpret_cast<const std::uint32_t*>(copy) : rows.data();
            tensors.mask_row_words = words;
            target.engine->launch(plan, tensors);
        });
        if (target.device) target.device->free(copy);
        CHECK(unknown.fault(known.forest) == "");
    }
}

/// One captured plan through a session: the accepted tokens join the prefix, the next draft takes the place of this one.
void steps_are_updates(const Target& target) {
    DecodeCase which = small_case();
    which.tree = {{-1, 97, 0}, {-1, 50, 1}};
    which.drafts = {{0, tree(11, 24)}, {1, tree(12, 16)}};
    Scene scene(which);
    DecodePlan plan = plan_of(target, scene);
    Bound bound(target, scene);
    Dice dice(13);
    for (int step = 0; step < 6; ++step) {
        CAPTURE(step);
        bound.run(plan);
        CHECK(scene.fault() == "");
        for (std::int32_t node = 2; node < 4; ++node) {
            const std::int32_t prefix = scene.forest.node(node).parent, accepted = dice.between(1, 4);
            scene.forest.append_tokens(prefix, accepted);
            const DraftMask next = tree(static_cast<std::uint64_t>(100 + step * 2 + node), scene.forest.draft_mask(node)->rows());
            scene.forest.replace_draft(node, scene.forest.node(node).kv_begin, next);
        }
        scene.fill();
        bound.refresh();
        plan.update(scene.forest);
    }
}

}  // namespace

SAPWOOD_ON_BOTH("verify: every case matches the oracle", matches_oracle)
SAPWOOD_ON_BOTH("verify: a draft tree = a forest of one-token nodes", trees_are_nodes)
SAPWOOD_ON_BOTH("verify: masks on the device = masks known to the plan", masks_on_the_device)
SAPWOOD_ON_BOTH("verify: steps of a session are updates of one plan", steps_are_updates)

TEST_CASE("decode on host: verify: six thread schedules give the same bits") {
    DecodeCase which = small_case();
    which.drafts = {{0, tree(1, 37)}, {1, bits(2, 20, 33)}};
    Scene in_order(which);
    run_once(host_target(), in_order);
    CHECK(in_order.fault() == "");
    for (std::uint64_t seed = 1; seed <= 6; ++seed) {
        CAPTURE(seed);
        Engine engine(host_options(seed));
        Scene scene(which);
        run_once({&engine, nullptr}, scene);
        CHECK(scene.same_bits(in_order));
    }
}

TEST_CASE("decode on host: verify: masks are asked for where they belong, and refused elsewhere") {
    DecodeCase which = small_case();
    which.drafts = {{0, DraftMask::on_device(4, 40)}};
    Scene scene(which);
    Engine& engine = *host_target().engine;
    DecodePlan plan = plan_of(host_target(), scene);
    const auto refusal = [&](DecodePlan& of, const DecodeTensors& tensors) -> std::string {
        try {
            engine.launch(of, tensors);
        } catch (const Error& error) {
            return error.what();
        }
        return "";
    };
    DecodeTensors tensors = scene.tensors;
    CHECK(refusal(plan, tensors).find("mask is null") != std::string::npos);
    const std::vector<std::uint32_t> words(100, 0);
    tensors.mask = words.data();
    tensors.mask_row_words = 1;
    CHECK(refusal(plan, tensors).find("40 tokens, which take 2 words") != std::string::npos);
    which.drafts = {{0, tree(1, 4)}};
    Scene known(which);
    DecodePlan other = plan_of(host_target(), known);
    tensors = known.tensors;
    tensors.mask = words.data();
    CHECK(refusal(other, tensors).find("no draft of the plan has its mask on the device") != std::string::npos);
}
