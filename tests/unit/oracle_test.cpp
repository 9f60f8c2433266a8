// SPDX-License-Identifier: Apache-2.0
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "oracle/decode_oracle.h"
#include "support/compare.h"
#include "support/half.h"
#include "support/inputs.h"

using namespace sapwood;
using namespace sapwood::support;

namespace {

// Two keys: (1, 0, …) and (0, 1, 0, …); values all 1 and all 3; query (2, 1, 0, …). Scores before the scale: 2 and 1.
struct TwoKeys {
    static constexpr int kDim = 64;
    std::vector<std::uint16_t> q = std::vector<std::uint16_t>(kDim), k = std::vector<std::uint16_t>(4 * kDim), v = k;
    std::int32_t pages[2] = {3, 1};  // position 0 lies in row 3, position 1 in row 1; rows 0 and 2 hold NaN
    DecodeProblem problem{.q_heads = 1, .kv_heads = 1, .head_dim = kDim, .dtype = DType::fp16, .page_size = 1, .scale = 1};
    DecodeTensors tensors;

    TwoKeys() {
        for (int d = 0; d < kDim; ++d) {
            k[static_cast<std::size_t>(d)] = k[static_cast<std::size_t>(2 * kDim + d)] = kNan16;
            v[static_cast<std::size_t>(1 * kDim + d)] = to_fp16(3);
            v[static_cast<std::size_t>(3 * kDim + d)] = to_fp16(1);
        }
        q[0] = to_fp16(2), q[1] = to_fp16(1);
        k[3 * kDim] = to_fp16(1), k[1 * kDim + 1] = to_fp16(1);
        tensors = {.q = q.data(), .k = k.data(), .v = v.data(), .page_table = pages};
    }
};

}  // namespace

TEST_CASE("oracle: two tokens by hand") {
    TwoKeys two;
    // The two tokens in two nodes of a chain; a second request sees the first token alone, a third nothing.
    const Node nodes[] = {{-1, 1, 0}, {0, 1, 1}};
    const std::int32_t requests[] = {1, 0, Forest::kNoNode};
    two.q.resize(3 * TwoKeys::kDim);
    std::copy_n(two.q.begin(), 2, two.q.begin() + TwoKeys::kDim);
    two.tensors.q = two.q.data();
    const Forest forest = Forest::from_nodes(nodes, requests);
    const oracle::DecodeResult result = oracle::decode(forest, two.problem, two.tensors, 1);

    const double e = std::exp(1.0), weight = e / (e + 1);  // of the first token: exp(2) / (exp(2) + exp(1))
    CHECK(result.out[5] == doctest::Approx(weight * 1 + (1 - weight) * 3).epsilon(1e-12));
    CHECK(result.lse[0] == doctest::Approx(1 + std::log(e + 1)).epsilon(1e-12));
    CHECK(result.out[TwoKeys::kDim] == 1);
    CHECK(result.lse[1] == 2);
    CHECK(result.out[2 * TwoKeys::kDim + 3] == 0);
    CHECK(result.lse[2] == -std::numeric_limits<double>::infinity());
}

TEST_CASE("oracle: the soft-cap acts after the scale") {
    TwoKeys two;
    two.problem.scale = 0.5f, two.problem.softcap = 1.5f;
    const Node nodes[] = {{-1, 2, 0}};
    const oracle::DecodeResult result = oracle::decode(Forest::from_nodes(nodes), two.problem, two.tensors);
    const double a = std::exp(1.5 * std::tanh(1.0 / 1.5)), b = std::exp(1.5 * std::tanh(0.5 / 1.5));
    CHECK(result.out[0] == doctest::Approx((a + 3 * b) / (a + b)).epsilon(1e-12));
    CHECK(result.lse[0] == doctest::Approx(std::log(a + b)).epsilon(1e-12));
}

TEST_CASE("oracle: head strides and GQA choose the right rows; HND equals NHD") {
    const CaseSpec spec{.name = "small", .seed = 9, .nodes = {{-1, 5, 1}, {0, 3, 2}, {-1, 4, 1}}};
    const DecodeCase built = build_case(spec, {.head_dim = 64, .q_heads = 6, .kv_heads = 2, .page_size = 16});
    const Inputs packed = make_inputs(built), turned = make_inputs(built, {.hnd = true});
    const auto a = oracle::decode(built.forest, built.problem(), packed.tensors),
               b = oracle::decode(built.forest, built.problem(), turned.tensors);
    CHECK(a.out == b.out);
    CHECK(a.lse == b.lse);
    // Query head 5 reads KV head 1: recompute request 1 there as a problem of one KV head.
    DecodeProblem single = built.problem();
    single.q_heads = single.kv_heads = 1;
    DecodeTensors view = packed.tensors;
    view.q = packed.q.data() + 5 * 64, view.q_request_stride = 6 * 64;
    view.k = packed.k.data() + 64, view.k_token_stride = 2 * 64;
    view.v = packed.v.data() + 64, view.v_token_stride = 2 * 64;
    const std::int32_t one[] = {1};
    CHECK(oracle::decode(built.forest, single, view, one).lse[0] == a.lse[1 * 6 + 5]);
}

TEST_CASE("comparison: NaN never passes, one bad row cannot hide") {
    const double nan = std::numeric_limits<double>::quiet_NaN(), inf = std::numeric_limits<double>::infinity();
    CHECK(relative_error(std::vector<double>{3, 4.05}, std::vector<double>{3, 4}) == doctest::Approx(0.01));
    CHECK(relative_error(std::vector<double>{3, nan}, std::vector<double>{3, 4}) == inf);
    CHECK(max_abs_error(std::vector<double>{-inf, 1}, std::vector<double>{-inf, 1.5}) == 0.5);
    CHECK(max_abs_error(std::vector<double>{-inf}, std::vector<double>{0}) == inf);

    const CaseSpec spec{.name = "many", .seed = 3, .nodes = std::vector<TreeNode>(50, {-1, 8, 1})};
    const DecodeCase built = build_case(spec, {.dtype = DType::fp16, .head_dim = 64, .q_heads = 1, .kv_heads = 1});
    Inputs inputs = make_inputs(built);
    const auto want = oracle::decode(built.forest, built.problem(), inputs.tensors);
    CHECK_FALSE(compare(built.problem(), inputs.tensors, want).passes(DType::fp16));  // still poisoned
    for (std::size_t i = 0; i < want.out.size(); ++i) inputs.out.data()[i] = to_fp16(static_cast<float>(want.out[i]));
    for (std::size_t i = 0; i < want.lse.size(); ++i) inputs.lse[i] = static_cast<float>(want.lse[i]);
    CHECK(compare(built.problem(), inputs.tensors, want).passes(DType::fp16));
    inputs.out.data()[7] = to_fp16(static_cast<float>(want.out[7]) + 0.02f);
    const Comparison spoiled = compare(built.problem(), inputs.tensors, want);
    CHECK(spoiled.out_error < tolerance(DType::fp16));
    CHECK_FALSE(spoiled.passes(DType::fp16));
}
