// SPDX-License-Identifier: Apache-2.0
// What a merge refuses, and in which words.
#include "engine/merge_arguments.h"

#include <doctest/doctest.h>

#include <functional>

#include "sapwood/error.h"

using namespace sapwood;

namespace {

struct Call {
    MergeProblem problem = {.heads = 4, .head_dim = 64};
    MergeTensors tensors;
    std::int64_t rows = 6;
};

char* address(std::size_t at) { return reinterpret_cast<char*>(0x10000 + at); }

Call good(MergeLayout layout = MergeLayout::rows_parts) {
    Call call;
    call.problem.layout = layout;
    const std::size_t tensors = layout == MergeLayout::separate ? 3 : 1;
    for (std::size_t i = 0; i < tensors; ++i)
        call.tensors.parts[i] = {.out = address(i * 0x1000), .lse = reinterpret_cast<float*>(address(0x8000 + i * 0x100))};
    call.tensors.count = 3;
    call.tensors.out = address(0x20000);
    call.tensors.lse = reinterpret_cast<float*>(address(0x30000));
    return call;
}

abi::MergeParams bound(const Call& call) {
    abi::MergeParams params{};
    check_merge(call.problem);
    bind_merge(call.problem, call.tensors, call.rows, params);
    return params;
}

void refuses(ErrorCode code, const char* says, const std::function<void(Call&)>& spoil,
             MergeLayout layout = MergeLayout::rows_parts) {
    Call call = good(layout);
    spoil(call);
    CAPTURE(says);
    try {
        bound(call);
        FAIL_CHECK("accepted");
    } catch (const Error& error) {
        CHECK(error.code() == code);
        CHECK_MESSAGE(std::string(error.what()).find(says) != std::string::npos, error.what());
    }
}

}  // namespace

TEST_CASE("merge arguments: strides of 0 are those of the layout, in 16 bytes or floats") {
    const abi::MergeParams rows = bound(good());
    CHECK(rows.part_stride == 4 * 64 * 2 / 16);
    CHECK(rows.parts[0].out_stride.row == 3 * 4 * 64 * 2 / 16);
    CHECK(rows.parts[0].lse_stride.row == 3 * 4);
    CHECK(rows.out_stride.row == 4 * 64 * 2 / 16);
    CHECK(rows.row_heads == 24);
    const abi::MergeParams parts = bound(good(MergeLayout::parts_rows));
    CHECK(parts.part_stride == 6 * 4 * 64 * 2 / 16);
    CHECK(parts.lse_part_stride == 6 * 4);
    CHECK(parts.parts[0].out_stride.row == 4 * 64 * 2 / 16);
    Call given = good(MergeLayout::separate);
    given.tensors.rows_per_batch = 2;
    given.tensors.parts[1].lse_stride = {.batch = 8, .row = 1, .head = 2};
    const abi::MergeParams separate = bound(given);
    CHECK(separate.parts[2].out == address(0x2000));
    CHECK(separate.parts[2].out_stride.batch == 2 * 4 * 64 * 2 / 16);
    CHECK(separate.parts[1].lse_stride.head == 2);
    CHECK(separate.part_stride == 0);
    given.problem.lse_base = LseBase::two;
    CHECK(bound(given).to_log2 == 1.0f);
}

TEST_CASE("merge arguments: a refusal names the tensor and the reason") {
    const auto problem = ErrorCode::kInvalidProblem;
    refuses(problem, "heads is 0; it must be 1 to", [](Call& c) { c.problem.heads = 0; });
    refuses(problem, "head_dim is 100; it must be a multiple of 8 from 8 to 512", [](Call& c) { c.problem.head_dim = 100; });
    refuses(problem, "head_dim is 520", [](Call& c) { c.problem.head_dim = 520; });
    refuses(problem, "part_dtype is none of fp16, bf16, fp32", [](Call& c) { c.problem.part_dtype = StateDType{}; });
    refuses(problem, "layout is none of", [](Call& c) { c.problem.layout = static_cast<MergeLayout>(9); });

    const auto argument = ErrorCode::kInvalidArgument;
    const auto separate = MergeLayout::separate;
    refuses(argument, "parts[0].out is null", [](Call& c) { c.tensors.parts[0].out = nullptr; });
    refuses(
        argument, "parts[2].lse is null", [](Call& c) { c.tensors.parts[2].lse = nullptr; }, separate);
    refuses(argument, "out is at an address that is not a multiple of 16", [](Call& c) { c.tensors.out = address(8); });
    refuses(argument, "rows is -1; with 4 heads", [](Call& c) { c.rows = -1; });
    refuses(argument, "rows is 600000000; with 4 heads", [](Call& c) { c.rows = 600'000'000; });
    refuses(argument, "rows_per_batch is 4; it must divide the 6 rows", [](Call& c) { c.tensors.rows_per_batch = 4; });
    refuses(
        argument, "count is 9; separate tensors are 0 to 8", [](Call& c) { c.tensors.count = 9; }, separate);
    refuses(argument, "count is -2; it must be 0 or more", [](Call& c) { c.tensors.count = -2; });
    refuses(
        argument, "parts[1].out has a head stride of 68 elements; it must be a positive multiple of 8",
        [](Call& c) { c.tensors.parts[1].out_stride.head = 68; }, separate);
    refuses(argument, "parts[0].out has a part stride of -8", [](Call& c) { c.tensors.part_stride = -8; });
    refuses(argument, "lse has a row stride of -1", [](Call& c) { c.tensors.lse_stride.row = -1; });
    refuses(argument, "out has a stride below its 64 elements", [](Call& c) { c.tensors.out_stride.head = 32; });

    const auto by_indptr = [](Call& c) { c.tensors.indptr = reinterpret_cast<std::int32_t*>(address(0x40000)); };
    refuses(argument, "indptr is given, but the layout is separate", by_indptr, separate);
    refuses(argument, "count is 3 although indptr", by_indptr);
    refuses(argument, "indptr is at an address",
            [](Call& c) { c.tensors.indptr = reinterpret_cast<std::int32_t*>(address(2)), c.tensors.count = 0; });

    refuses(argument, "out is the memory of parts[0].out, with other strides", [](Call& c) { c.tensors.out = address(0); });
    refuses(
        argument, "out is the memory of parts[1].out, with another element type",
        [](Call& c) { c.tensors.out = address(0x1000), c.problem.out_dtype = StateDType::fp16; }, separate);
    refuses(argument, "lse is the memory of parts[0].lse, whose rows are taken by indptr", [&](Call& c) {
        by_indptr(c);
        c.tensors.count = 0, c.tensors.lse = const_cast<float*>(c.tensors.parts[0].lse);
    });
    Call in_place = good(separate);
    in_place.tensors.out = address(0x1000);
    CHECK(bound(in_place).out == address(0x1000));
}

TEST_CASE("merge arguments: a division by a product is a division") {
    for (const unsigned divisor : {1u, 2u, 3u, 7u, 32u, 33u, 1000u, 65535u, 1u << 30, 2147483647u}) {
        const abi::MergeDivisor by = abi::merge_divisor(divisor);
        for (const unsigned n : {0u, 1u, 31u, 32u, 33u, 65534u, 999'999'999u, 2147483646u, 2147483647u}) {
            CAPTURE(divisor);
            CHECK(abi::merge_divide(n, by) == n / divisor);
            CHECK(abi::merge_divide(n - n % divisor, by) == n / divisor);
        }
    }
}
