// SPDX-License-Identifier: Apache-2.0
// Merges of partial results against the fp64 oracle, and what must hold between them: on the host target and on a GPU.
#include <doctest/doctest.h>

#include <cmath>

#include "kernel/merge_scene.h"
#include "support/compare.h"
#include "support/gpu.h"

using namespace sapwood;
using namespace sapwood::test;

namespace {

constexpr StateDType kTypes[] = {StateDType::fp16, StateDType::bf16, StateDType::fp32};
constexpr double kE = 2.718281828459045;

void check(const Target& target, const MergeCase& which) {
    CAPTURE(which.to_string());
    MergeScene scene(which);
    scene.run(target);
    CHECK(scene.fault() == "");
}

void any_number_of_parts(const Target& target) {
    for (std::int32_t parts = 1; parts <= 40; ++parts) {
        for (const MergeLayout layout : {MergeLayout::rows_parts, MergeLayout::parts_rows, MergeLayout::separate}) {
            if (layout == MergeLayout::separate && parts > kMaxMergeTensors) continue;
            check(target, {"parts", 3, 64, StateDType::fp16, StateDType::fp16, layout, parts});
        }
    }
    // More than one step of 32 lanes, and a kernel that was chosen for few.
    check(target, {"workspace", 2, 128, StateDType::fp32, StateDType::bf16, MergeLayout::parts_rows, 131, 3});
    MergeCase unexpected = {"unexpected", 2, 128, StateDType::fp32, StateDType::bf16, MergeLayout::parts_rows, 131, 3};
    unexpected.hint = false;
    check(target, unexpected);
}

void any_head_dim(const Target& target) {
    for (const std::int32_t dim : {8, 16, 24, 40, 72, 80, 96, 128, 136, 192, 256, 264, 512}) {
        check(target, {"dim", 3, dim, StateDType::bf16, StateDType::bf16, MergeLayout::rows_parts, 5});
        check(target, {"dim", 3, dim, StateDType::fp32, StateDType::fp16, MergeLayout::separate, 3});
    }
}

void every_type_into_every_type(const Target& target) {
    for (const StateDType part : kTypes) {
        for (const StateDType out : kTypes) {
            check(target, {"types", 5, 128, part, out, MergeLayout::separate, 2, 7});
            check(target, {"types", 5, 80, part, out, MergeLayout::rows_parts, 9, 4});
        }
    }
}

void any_place(const Target& target) {
    for (const MergeLayout layout : {MergeLayout::rows_parts, MergeLayout::parts_rows, MergeLayout::separate}) {
        for (const MergePlaces places : {MergePlaces::packed, MergePlaces::padded, MergePlaces::heads_first}) {
            for (const std::int64_t batches : {1, 3}) {
                MergeCase which = {"places", 4, 64, StateDType::bf16, StateDType::bf16, layout, 3, 12, places, batches};
                check(target, which);
                which.base = LseBase::two;
                which.lse = batches == 1;
                check(target, which);
            }
        }
    }
}

void rows_with_their_own_parts(const Target& target) {
    for (const MergePlaces places : {MergePlaces::packed, MergePlaces::padded}) {
        for (const std::int32_t parts : {2, 40}) {
            MergeCase which = {"indptr", 3, 64, StateDType::fp16, StateDType::fp16, MergeLayout::rows_parts, parts, 23, places};
            which.indptr = true;
            check(target, which);
        }
    }
}

void in_place(const Target& target) {
    for (const MergeLayout layout : {MergeLayout::rows_parts, MergeLayout::parts_rows, MergeLayout::separate}) {
        for (const StateDType type : kTypes) {
            MergeCase which = {"in place", 5, 72, type, type, layout, 5, 37};
            which.in_place = true;
            check(target, which);
        }
    }
}

/// Logarithms as far apart and as large as fp32 has them.
void any_logarithm(const Target& target) {
    MergeCase which = {"logarithms", 1, 64, StateDType::fp32, StateDType::fp32, MergeLayout::separate, 3, 6};
    MergeScene scene(which);
    const double values[6][3] = {{3e38, -3e38, 0},      {-3e38, -3e38, -3e38}, {88, 89, 90},
                                 {-1e30, -1e30, -1e31}, {3e38, 3e38, 3e38},    {-104, 0, -87}};
    for (std::int64_t row = 0; row < 6; ++row) {
        for (std::int32_t i = 0; i < 3; ++i)
            scene.set_part(row, 0, i, {std::vector<double>(64, 1.0 + i), static_cast<float>(values[row][i])});
    }
    scene.run(target);
    for (std::int64_t row = 0; row < 6; ++row) {
        CAPTURE(row);
        const oracle::State got = scene.result(row, 0);
        const oracle::State parts[] = {scene.part(row, 0, 0), scene.part(row, 0, 1), scene.part(row, 0, 2)};
        const oracle::State want = oracle::merge(parts, 64, kE);
        CHECK(support::relative_error(got.out, want.out) < 1e-6);
        CHECK(std::abs(got.lse - want.lse) <= 1e-6 * std::abs(want.lse) + 1e-6);
    }
}

void no_parts_at_all(const Target& target) {
    for (const MergeLayout layout : {MergeLayout::rows_parts, MergeLayout::separate}) {
        MergeCase which = {"no parts", 2, 64, StateDType::bf16, StateDType::bf16, layout, 1, 3};
        MergeScene scene(which);
        scene.run(target, [&](MergeTensors tensors) {
            tensors.count = 0, tensors.parts = {};
            target.engine->merge_states(which.problem(), tensors, which.rows);
        });
        for (std::int64_t row = 0; row < 3; ++row) {
            const oracle::State got = scene.result(row, 1);
            CHECK(got.out == std::vector<double>(64, 0.0));
            CHECK(got.lse == -INFINITY);
        }
    }
}

void one_part_is_a_copy(const Target& target) {
    for (const LseBase base : {LseBase::natural, LseBase::two}) {
        for (const StateDType type : kTypes) {
            MergeCase which = {"one", 4, 96, type, type, MergeLayout::separate, 1, 9};
            which.base = base;
            MergeScene scene(which);
            scene.run(target);
            for (std::int64_t row = 0; row < which.rows; ++row) {
                for (std::int32_t head = 0; head < which.heads; ++head) {
                    const oracle::State part = scene.part(row, head, 0), got = scene.result(row, head);
                    if (std::isinf(part.lse)) continue;
                    CHECK(got.out == part.out);  // to the bit
                    CHECK(got.lse == part.lse);
                }
            }
        }
    }
}

/// merge(a, b, c, d) = merge(merge(a, b), merge(c, d)) = merge(a, merge(b, c, d)).
void merging_is_associative(const Target& target) {
    MergeCase which = {"all", 3, 128, StateDType::fp32, StateDType::fp32, MergeLayout::rows_parts, 4, 11};
    MergeScene all(which);
    all.run(target);
    CHECK(all.fault() == "");
    const auto merged = [&](std::vector<std::function<oracle::State(std::int64_t, std::int32_t)>> parts) {
        MergeCase of = which;
        of.parts = static_cast<std::int32_t>(parts.size());
        auto scene = std::make_shared<MergeScene>(of);
        for (std::int64_t row = 0; row < of.rows; ++row)
            for (std::int32_t head = 0; head < of.heads; ++head)
                for (std::int32_t i = 0; i < of.parts; ++i)
                    scene->set_part(row, head, i, parts[static_cast<std::size_t>(i)](row, head));
        scene->run(target);
        return [scene](std::int64_t row, std::int32_t head) { return scene->result(row, head); };
    };
    const auto part = [&](std::int32_t i) {
        return [&all, i](std::int64_t row, std::int32_t head) { return all.part(row, head, i); };
    };
    const auto pairs = merged({merged({part(0), part(1)}), merged({part(2), part(3)})});
    const auto chain = merged({part(0), merged({part(1), part(2), part(3)})});
    for (std::int64_t row = 0; row < which.rows; ++row) {
        for (std::int32_t head = 0; head < which.heads; ++head) {
            const oracle::State want = all.result(row, head);
            for (const oracle::State& got : {pairs(row, head), chain(row, head)}) {
                CHECK(support::relative_error(got.out, want.out) <= 4e-6);
                CHECK((got.lse == want.lse || std::abs(got.lse - want.lse) < 1e-5));
            }
        }
    }
}

/// LongSpec: w = sigmoid(lse_prefix - lse_tree), out = w * prefix + (1 - w) * tree; the prefix [batch, rows, heads, dim] with lse
/// [batch, heads, rows] as flash-attn gives it, the tree [batch, heads, rows, dim] as the tree kernel does.
void longspec_pair(const Target& target) {
    const std::int32_t heads = 4, dim = 128;
    const std::int64_t batch = 2, rows = 9, all = batch * rows;
    MergeCase which = {"longspec", heads, dim, StateDType::fp16, StateDType::fp16, MergeLayout::separate, 2, all};
    which.places = MergePlaces::heads_first, which.batches = batch;
    MergeScene scene(which);
    StateBuffer prefix(StateDType::fp16, all * heads * dim);
    std::vector<std::vector<double>> want(static_cast<std::size_t>(all * heads));
    for (std::int64_t row = 0; row < all; ++row) {
        for (std::int32_t head = 0; head < heads; ++head) {
            oracle::State part[2];
            for (std::int32_t i = 0; i < 2; ++i) {
                part[i] = {std::vector<double>(dim), static_cast<float>(std::sin(static_cast<double>(row * 7 + head * 3 + i)) * 4)};
                for (std::int32_t d = 0; d < dim; ++d)
                    part[i].out[static_cast<std::size_t>(d)] = std::cos(row + d * (i + 1.0) + head);
                scene.set_part(row, head, i, part[i]);
                part[i] = scene.part(row, head, i);  // rounded
            }
            const double w = 1 / (1 + std::exp(part[1].lse - part[0].lse));
            std::vector<double>& out = want[static_cast<std::size_t>(row * heads + head)];
            for (std::size_t d = 0; d < static_cast<std::size_t>(dim); ++d) {
                prefix.set((row * heads + head) * dim + static_cast<std::int64_t>(d), part[0].out[d]);
                out.push_back(w * part[0].out[d] + (1 - w) * part[1].out[d]);
            }
        }
    }
    const std::uint64_t copy = target.device ? target.device->allocate(prefix.bytes.size()) : 0;
    if (target.device) target.device->copy_to_device(copy, prefix.data(), prefix.bytes.size(), nullptr);
    scene.run(target, [&](MergeTensors tensors) {
        tensors.parts[0].out = target.device ? reinterpret_cast<const void*>(copy) : prefix.data();
        tensors.parts[0].out_stride = {};  // packed
        target.engine->merge_states(which.problem(), tensors, all);
    });
    if (target.device) target.device->free(copy);
    for (std::int64_t row = 0; row < all; ++row)
        for (std::int32_t head = 0; head < heads; ++head)
            CHECK(support::relative_error(scene.result(row, head).out, want[static_cast<std::size_t>(row * heads + head)]) <= 1e-3);
}

}  // namespace

SAPWOOD_MERGE_ON_BOTH("1 to 40 parts and more, of every layout", any_number_of_parts)
SAPWOOD_MERGE_ON_BOTH("head dims that are multiples of 8", any_head_dim)
SAPWOOD_MERGE_ON_BOTH("every type into every type", every_type_into_every_type)
SAPWOOD_MERGE_ON_BOTH("packed, padded and heads-first, in batches, both bases", any_place)
SAPWOOD_MERGE_ON_BOTH("rows with their own number of parts", rows_with_their_own_parts)
SAPWOOD_MERGE_ON_BOTH("in place", in_place)
SAPWOOD_MERGE_ON_BOTH("any logarithm, however large or far apart", any_logarithm)
SAPWOOD_MERGE_ON_BOTH("no parts at all are 0 and -inf", no_parts_at_all)
SAPWOOD_MERGE_ON_BOTH("one part is a copy, to the bit", one_part_is_a_copy)
SAPWOOD_MERGE_ON_BOTH("merging is associative", merging_is_associative)
SAPWOOD_MERGE_ON_BOTH("LongSpec's sigmoid is a merge of two", longspec_pair)

TEST_CASE("merge on gpu: a prepared merge is captured and replays, another one is refused under capture") {
    if (!support::gpu_available()) return;
    const Target target = gpu_target();
    MergeCase which = {"graph", 3, 64, StateDType::fp16, StateDType::fp16, MergeLayout::rows_parts, 4, 23};
    MergeScene scene(which);
    MergeProblem unprepared = which.problem();
    unprepared.head_dim = 56;
    target.engine->prepare_merge(which.problem());
    scene.run(target, [&](const MergeTensors& tensors) {
        void* stream = target.device->create_stream();
        target.device->begin_capture(stream);
        try {
            target.engine->merge_states(unprepared, tensors, 1, stream);
            FAIL_CHECK("a kernel was compiled under capture");
        } catch (const Error& error) {
            CHECK(error.code() == ErrorCode::kNotPrepared);
        }
        target.engine->merge_states(which.problem(), tensors, which.rows, stream);
        void* graph = target.device->end_capture(stream);
        for (int i = 0; i < 3; ++i) target.device->launch_graph(graph, stream);
        target.device->synchronize(stream);
        target.device->destroy_graph(graph);
        target.device->destroy_stream(stream);
    });
    CHECK(scene.fault() == "");
}
