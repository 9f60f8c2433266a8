// SPDX-License-Identifier: Apache-2.0
#include "engine/merge_arguments.h"

#include <limits>
#include <string>

#include "base/error.h"

namespace sapwood {
namespace {

constexpr std::int64_t kAlign = 16;  // bytes: every row is read and written in 16-byte pieces

[[noreturn]] void refuse(const std::string& what, const std::string& why) {
    raise(ErrorCode::kInvalidArgument, "merge_states: " + what + " " + why);
}

[[noreturn]] void refuse_problem(const std::string& why) { raise(ErrorCode::kInvalidProblem, "merge: " + why); }

bool known(StateDType dtype) { return dtype == StateDType::fp16 || dtype == StateDType::bf16 || dtype == StateDType::fp32; }

void check_pointer(const std::string& what, const void* pointer, std::uintptr_t align) {
    if (pointer == nullptr) refuse(what, "is null");
    if (reinterpret_cast<std::uintptr_t>(pointer) % align != 0)
        refuse(what, "is at an address that is not a multiple of " + std::to_string(align) + " bytes");
}

/// Of one tensor: name, element size, the unit of its strides in bytes, and the elements of a row and head.
struct Tensor {
    std::string name;
    std::int64_t bytes, unit, width;
};

/// The given stride or, for 0, the packed one, in units.
unsigned stride(const Tensor& tensor, const char* which, std::int64_t given, std::int64_t packed) {
    const std::int64_t elements = given == 0 ? packed : given, of_unit = tensor.unit / tensor.bytes;
    const std::int64_t most = std::numeric_limits<std::uint32_t>::max() * of_unit;
    if (elements < 0 || elements > most || elements % of_unit != 0) {
        refuse(tensor.name, "has a " + std::string(which) + " stride of " + std::to_string(elements) +
                                " elements; it must be a positive multiple of " + std::to_string(of_unit) + ", at most " +
                                std::to_string(most));
    }
    return static_cast<unsigned>(elements / of_unit);
}

/// `row` is the packed row stride in elements. A stride that leads nowhere (one batch, one row) is 0: it may not fit.
abi::MergeStrides strides(const Tensor& tensor, const MergeStrides& given, std::int64_t row, std::int64_t rows,
                          std::int64_t rows_per_batch) {
    abi::MergeStrides units{};
    units.head = stride(tensor, "head", given.head, tensor.width);
    units.row = stride(tensor, "row", given.row, row);
    if (rows > rows_per_batch)
        units.batch = stride(tensor, "batch", given.batch, rows_per_batch * (units.row * (tensor.unit / tensor.bytes)));
    return units;
}

/// What is written must not overlap itself: no two of its rows and heads may share an element.
void check_written(const Tensor& tensor, const abi::MergeStrides& at, std::int32_t heads, std::int64_t rows,
                   std::int64_t rows_per_batch) {
    const std::int64_t least = tensor.width * tensor.bytes / tensor.unit;
    if ((heads > 1 && at.head < least) || (rows_per_batch > 1 && at.row < least) || (rows > rows_per_batch && at.batch < least))
        refuse(tensor.name,
               "has a stride below its " + std::to_string(tensor.width) + " elements a row and head: rows would overlap");
}

bool same(const abi::MergeStrides& a, const abi::MergeStrides& b) {
    return a.batch == b.batch && a.row == b.row && a.head == b.head;
}

void check_in_place(const char* what, const abi::MergeStrides& written, const std::string& part, const abi::MergeStrides& read,
                    bool same_type, bool indptr) {
    if (same_type && !indptr && same(written, read)) return;
    refuse(what, "is the memory of " + part +
                     (indptr       ? ", whose rows are taken by indptr"
                      : !same_type ? ", with another element type"
                                   : ", with other strides") +
                     ": parts would be overwritten before they are read. Give it memory of its own");
}

}  // namespace

void check_merge(const MergeProblem& problem) {
    if (problem.heads < 1 || problem.heads > 65535)
        refuse_problem("heads is " + std::to_string(problem.heads) + "; it must be 1 to 65535");
    if (problem.head_dim < 8 || problem.head_dim > 512 || problem.head_dim % 8 != 0)
        refuse_problem("head_dim is " + std::to_string(problem.head_dim) + "; it must be a multiple of 8 from 8 to 512");
    if (!known(problem.part_dtype)) refuse_problem("part_dtype is none of fp16, bf16, fp32");
    if (!known(problem.out_dtype)) refuse_problem("out_dtype is none of fp16, bf16, fp32");
    if (problem.layout != MergeLayout::rows_parts && problem.layout != MergeLayout::parts_rows &&
        problem.layout != MergeLayout::separate)
        refuse_problem("layout is none of rows_parts, parts_rows, separate");
    if (problem.lse_base != LseBase::natural && problem.lse_base != LseBase::two)
        refuse_problem("lse_base is neither natural nor two");
}

void bind_merge(const MergeProblem& problem, const MergeTensors& tensors, std::int64_t rows, abi::MergeParams& params) {
    const std::int64_t heads = problem.heads, dim = problem.head_dim, count = tensors.count;
    const bool separate = problem.layout == MergeLayout::separate, indptr = tensors.indptr != nullptr;
    const std::int64_t most_rows = std::numeric_limits<std::int32_t>::max() / heads;
    if (rows < 1 || rows > most_rows)
        refuse("rows", "is " + std::to_string(rows) + "; with " + std::to_string(heads) + " heads one call takes 0 to " +
                           std::to_string(most_rows) + ". Split it");
    const std::int64_t per_batch = tensors.rows_per_batch == 0 ? rows : tensors.rows_per_batch;
    if (per_batch < 1 || rows % per_batch != 0)
        refuse("rows_per_batch", "is " + std::to_string(per_batch) + "; it must divide the " + std::to_string(rows) + " rows");
    const std::int64_t most = separate ? kMaxMergeTensors : std::numeric_limits<std::int32_t>::max();
    if (count < 0 || count > most)
        refuse("count",
               "is " + std::to_string(count) +
                   (separate ? "; separate tensors are 0 to 8. Stack more of them, or merge twice" : "; it must be 0 or more"));
    if (indptr) {
        if (separate) refuse("indptr", "is given, but the layout is separate; it needs one tensor of all parts");
        if (count != 0) refuse("count", "is " + std::to_string(count) + " although indptr gives each row's own; set it to 0");
        check_pointer("indptr", tensors.indptr, 4);
    }

    const auto out_bytes = static_cast<std::int64_t>(state_dtype_bytes(problem.out_dtype));
    const auto part_bytes = static_cast<std::int64_t>(state_dtype_bytes(problem.part_dtype));
    const Tensor out = {"out", out_bytes, kAlign, dim}, lse = {"lse", 4, 4, 1};
    check_pointer("out", tensors.out, kAlign);
    params.out = tensors.out;
    params.out_stride = strides(out, tensors.out_stride, heads * dim, rows, per_batch);
    check_written(out, params.out_stride, problem.heads, rows, per_batch);
    params.lse = tensors.lse;
    if (tensors.lse != nullptr) {
        check_pointer("lse", tensors.lse, 4);
        params.lse_stride = strides(lse, tensors.lse_stride, heads, rows, per_batch);
        check_written(lse, params.lse_stride, problem.heads, rows, per_batch);
    }

    const std::int64_t apart = problem.layout == MergeLayout::rows_parts ? count : 1;  // results of a row that are neighbours
    for (std::int64_t i = 0; i < (separate ? count : indptr || count > 0 ? 1 : 0); ++i) {
        const auto at = static_cast<std::size_t>(i);
        const MergePart& part = tensors.parts[at];
        const Tensor of_out = {"parts[" + std::to_string(i) + "].out", part_bytes, kAlign, dim};
        const Tensor of_lse = {"parts[" + std::to_string(i) + "].lse", 4, 4, 1};
        check_pointer(of_out.name, part.out, kAlign);
        check_pointer(of_lse.name, part.lse, 4);
        abi::MergePart& to = params.parts[at];
        to = {part.out, part.lse, strides(of_out, part.out_stride, apart * heads * dim, rows, per_batch),
              strides(of_lse, part.lse_stride, apart * heads, rows, per_batch)};
        if (!separate) {
            const std::int64_t packed = problem.layout == MergeLayout::parts_rows && !indptr ? rows * heads : heads;
            params.part_stride = stride(of_out, "part", tensors.part_stride, packed * dim);
            params.lse_part_stride = stride(of_lse, "part", tensors.lse_part_stride, packed);
        }
        if (part.out == tensors.out)
            check_in_place("out", params.out_stride, of_out.name, to.out_stride, problem.part_dtype == problem.out_dtype, indptr);
        if (part.lse == tensors.lse) check_in_place("lse", params.lse_stride, of_lse.name, to.lse_stride, true, indptr);
        if (indptr) to.out_stride.batch = to.out_stride.row = to.lse_stride.batch = to.lse_stride.row = 0;
    }
    params.indptr = tensors.indptr;
    params.heads = static_cast<unsigned>(heads);
    params.row_heads = static_cast<unsigned>(rows * heads);
    params.rows_per_batch = static_cast<unsigned>(per_batch);
    params.by_heads = abi::merge_divisor(params.heads);
    params.by_rows_per_batch = abi::merge_divisor(params.rows_per_batch);
    params.count = static_cast<unsigned>(count);
    const bool natural = problem.lse_base == LseBase::natural;
    params.to_log2 = natural ? 1.4426950408889634f : 1.0f;
    params.from_log2 = natural ? 0.6931471805599453f : 1.0f;
}

}  // namespace sapwood
