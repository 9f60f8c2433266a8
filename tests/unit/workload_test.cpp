// SPDX-License-Identifier: Apache-2.0
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <set>

#include "sapwood/error.h"
#include "support/half.h"
#include "support/inputs.h"
#include "support/packed_workload.h"
#include "support/rng.h"
#include "support/workload.h"

using namespace sapwood;
using namespace sapwood::support;

static std::string file(const char* name) { return std::string(SAPWOOD_SOURCE_DIR "/tests/workloads/") + name; }

TEST_CASE("workload random numbers are those of the format") {
    CHECK(rnd(1, Stream::pages, 0) == 0xa706dd2f4d197e6full);
    CHECK(rnd(1, Stream::pages, 1) == 0xb382a305f4414f5eull);
    CHECK(perm(1, Stream::pages, 8) == std::vector<std::int32_t>{5, 7, 2, 0, 3, 1, 6, 4});
    CHECK(value(1, Stream::q, 0) == -1.26341176f);
    CHECK(value(1, Stream::q, 1) == -0.41414237f);
}

TEST_CASE("fp16 and bf16 round to nearest even") {
    for (std::uint32_t i = 0; i < 65536; ++i) {  // every pattern survives the way out and back
        const auto h = static_cast<std::uint16_t>(i);
        if (std::isnan(from_fp16(h)))
            CHECK(std::isnan(from_fp16(to_fp16(from_fp16(h)))));
        else if (to_fp16(from_fp16(h)) != h)
            FAIL_CHECK("fp16 pattern " << i);
        if (std::isnan(from_bf16(h)))
            CHECK(std::isnan(from_bf16(to_bf16(from_bf16(h)))));
        else if (to_bf16(from_bf16(h)) != h)
            FAIL_CHECK("bf16 pattern " << i);
    }
    // The middle between two neighbours goes to the even one, a hair off it to the nearer: all finite fp16, subnormals too.
    for (std::uint16_t h = 0; h < 0x7bff; ++h) {
        const float low = from_fp16(h), high = from_fp16(static_cast<std::uint16_t>(h + 1)), middle = (low + high) / 2;
        const std::uint16_t even = h & 1 ? static_cast<std::uint16_t>(h + 1) : h;
        if (to_fp16(middle) != even || to_fp16(std::nextafter(middle, 0.f)) != h || to_fp16(std::nextafter(middle, 1e9f)) != h + 1)
            FAIL_CHECK("fp16 between " << h << " and " << h + 1);
    }
    CHECK(to_fp16(65519.f) == 0x7bff);
    CHECK(to_fp16(-65520.f) == 0xfc00);
    CHECK(to_bf16(1.00390625f) == 0x3f80);  // 1 + 2^-8, a tie
    CHECK(to_bf16(std::numeric_limits<float>::max()) == 0x7f80);
}

TEST_CASE("every case of the workload files is what its check integers say") {
    for (const auto& [name, cases] : {std::pair{"fasttree.json", 15}, std::pair{"beam.json", 244}, std::pair{"fewshot.json", 224},
                                      std::pair{"spec.json", 484}, std::pair{"fst.json", 21}}) {
        const auto specs = load_workload(file(name));
        CHECK(static_cast<int>(specs.size()) == cases);
        for (const CaseSpec& spec : specs) {
            CHECK(spec.check.path_tokens.has_value());
            // The forest is the same for every dtype and head count; pages differ by page size.
            for (Variant variant : spec.variants()) {
                const Variant first = spec.variants().front();
                if (variant.dtype != first.dtype || variant.head_dim != first.head_dim || variant.q_heads != first.q_heads ||
                    variant.kv_heads != first.kv_heads || variant.layout != first.layout)
                    continue;
                if (spec.check.unique_tokens > 300000 && variant.page_size == 1) continue;  // millions of pages: only slow
                const DecodeCase built = build_case(spec, variant);
                CHECK(built.rows == count_pages(spec, variant.page_size) * variant.page_size);
            }
        }
    }
}

TEST_CASE("every training case comes to the integers of its file") {
    REQUIRE(is_packed_workload(file("training.json")));
    CHECK_FALSE(is_packed_workload(file("fasttree.json")));
    const auto specs = load_packed_workload(file("training.json"));  // which compares
    CHECK(specs.size() == 34);
    for (const PackedSpec& spec : specs) {
        CHECK(spec.unique_tokens.has_value());
        CHECK(spec.visible_pairs.has_value());
    }
    CHECK(variants(specs[0]).size() == 6);
}

TEST_CASE("a workload that is not what its file says is refused by name and number") {
    CaseSpec spec{.name = "bad", .nodes = {{-1, 4, 0}, {0, 3, 2}}};
    spec.check.path_tokens = 14;
    CHECK_NOTHROW(verify(spec));
    spec.check.path_tokens = 13;
    CHECK_THROWS_WITH_AS(verify(spec), doctest::Contains("bad: path_tokens is 14, the file says 13"), Error);
    CHECK_THROWS_AS(load_workload(file("no-such.json")), Error);
}

TEST_CASE("pages are a permutation, nodes never share one, unowned slots are NaN") {
    const auto specs = select(load_workload(file("fewshot.json")), "QX2");
    REQUIRE(specs.size() == 1);
    Variant variant = specs[0].variants().front();
    variant.page_size = 16;
    const DecodeCase built = build_case(specs[0], variant, {.spare_tokens = 5});
    built.forest.check_pages(built.page_table, static_cast<std::int64_t>(built.page_table.size()), 16);
    std::set<std::int32_t> pages(built.page_table.begin(), built.page_table.end());
    CHECK(pages.size() == built.page_table.size());
    CHECK(*pages.rbegin() == static_cast<std::int32_t>(pages.size()) - 1);

    const Inputs inputs = make_inputs(built), turned = make_inputs(built, {.hnd = true});
    const std::int32_t heads = variant.kv_heads, dim = variant.head_dim;
    std::int64_t owned = 0;
    for (std::int64_t row = 0; row < built.rows; ++row)
        owned += !std::isnan(widen(variant.dtype, inputs.k.data()[row * heads * dim]));
    CHECK(owned == built.counts.unique_tokens);
    // Node 8's third token, head 1: by position and page; then the same in the HND tensor.
    const std::int64_t row = built.row_of(built.forest.node(8).kv_begin + 2), token = built.token_begin[8] + 2;
    const std::uint16_t want =
        round_to(variant.dtype, value(built.seed, Stream::v, static_cast<std::uint64_t>((token * heads + 1) * dim + 7)));
    CHECK(inputs.v.data()[(row * heads + 1) * dim + 7] == want);
    CHECK(turned.v.data()[(1 * built.rows + row) * dim + 7] == want);
}

TEST_CASE("cases are selected by name, glob or prefix") {
    const auto specs = load_workload(file("fasttree.json"));
    CHECK(select(specs, "FT1").size() == 1);
    CHECK(select(specs, "FT1*").size() == 7);
    CHECK(select(specs, "FT").size() == 15);
    CHECK(select(specs, "XX").empty());
    CHECK(specs[0].variants().size() == 6);
    for (const Variant& variant : specs[0].variants()) CHECK(variant.kv_dtype == KvDType::as_q);
    for (const Variant& variant : specs[0].variants(KvDType::e4m3)) CHECK(variant.kv_dtype == KvDType::e4m3);
}
