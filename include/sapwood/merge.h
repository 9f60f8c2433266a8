// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

namespace sapwood {

/// Element type of partial results and of what they are merged into. The sum is fp32, whatever they are; LSE is fp32 always.
enum class StateDType : std::uint8_t { fp16 = 1, bf16 = 2, fp32 = 3 };

const char* state_dtype_name(StateDType dtype) noexcept;
constexpr std::size_t state_dtype_bytes(StateDType dtype) noexcept { return dtype == StateDType::fp32 ? 4 : 2; }

/// What the logarithms are to the base of, on input and output alike. Natural: Sapwood, FlashAttention, LongSpec, vLLM. Two:
/// FlashInfer, whose `lse` and `s` are logarithms to base 2 (its cascade.cuh: "s are logsumexp values with base 2").
enum class LseBase : std::uint8_t { natural = 0, two = 1 };

/// Where the parts are; it also says what strides of 0 mean.
enum class MergeLayout : std::uint8_t {
    rows_parts = 0,  ///< one tensor [rows, parts, heads, head_dim], lse [rows, parts, heads]: FlashInfer's merge_states
    parts_rows = 1,  ///< one tensor [parts, rows, heads, head_dim], lse [parts, rows, heads]: a stack of results
    separate = 2,    ///< up to kMaxMergeTensors tensors [rows, heads, head_dim], lse [rows, heads]: LongSpec's prefix and tree
};

/// Most tensors of the layout `separate`. More of them: stack them, or merge the merged (merging is associative).
inline constexpr std::int32_t kMaxMergeTensors = 8;

/// Shapes of a merge: partial attention results of the same queries over disjoint keys, out_i = softmax(scores_i) V_i and lse_i =
/// log(sum(exp(scores_i))), become the result over all of the keys: out = sum(w_i out_i) / sum(w_i) with w_i = exp(lse_i - max
/// lse), lse = max lse + log(sum(w_i)). For two parts w_0 / (w_0 + w_1) = sigmoid(lse_0 - lse_1), LongSpec's form.
struct MergeProblem {
    std::int32_t heads = 0;     ///< query heads, 1 or more
    std::int32_t head_dim = 0;  ///< of V: a multiple of 8 from 8 to 512
    StateDType part_dtype = StateDType::bf16;
    StateDType out_dtype = StateDType::bf16;  ///< any of the three with any part_dtype
    MergeLayout layout = MergeLayout::rows_parts;
    LseBase lse_base = LseBase::natural;
    /// About how many parts a row has. Above 4 another kernel is chosen that has more loads in flight a warp and fewer warps. Speed
    /// alone: either merges any number.
    std::int32_t usual_parts = 2;
};

/// In elements, up to 2^32 rows of 16 bytes (of lse: 2^32 elements); 0 = packed as the layout says. Row r of a call is row r %
/// rows_per_batch of batch r / rows_per_batch.
struct MergeStrides {
    std::int64_t batch = 0, row = 0, head = 0;
};

/// One tensor of partial results, or of all of them.
struct MergePart {
    const void* out = nullptr;   ///< part_dtype; the last dimension is contiguous, every row 16-byte aligned
    const float* lse = nullptr;  ///< fp32. -inf or +inf (FlashAttention's mark): empty, weight 0, its out is not looked at
    MergeStrides out_stride, lse_stride;
};

/// Tensors of one call. Device pointers on a GPU engine, host pointers on a host engine.
/// FlashAttention's lse [batch, heads, rows] is lse_stride {heads * rows, 1, rows} with rows_per_batch = rows.
/// An output may be exactly one part's memory (same address, strides and element type; not with `indptr`); any other overlap of
/// what is written with what is read gives undefined values.
struct MergeTensors {
    std::array<MergePart, kMaxMergeTensors> parts{};    ///< separate: the first `count`; else the first one alone
    std::int32_t count = 0;                             ///< parts a row, 0 or more; 0 with indptr
    std::int64_t part_stride = 0, lse_part_stride = 0;  ///< from a part to the next, in elements; 0 = packed; not of `separate`
    /// Optional [rows + 1] int32: row r has the parts indptr[r] to indptr[r + 1] - 1 of [all parts, heads, head_dim] and lse [all
    /// parts, heads] (FlashInfer's variable-length merge). An end before its begin is no part. Read by the kernel, so the numbers
    /// may change between replays of a captured graph.
    const std::int32_t* indptr = nullptr;
    void* out = nullptr;   ///< out_dtype [rows, heads, head_dim]; 0 for a row all of whose parts are empty
    float* lse = nullptr;  ///< optional [rows, heads]; -inf for such a row. Never +inf, and NaN only if a part's lse or out is
    MergeStrides out_stride, lse_stride;
    std::int64_t rows_per_batch = 0;  ///< 0 = all rows are one batch; else it divides the rows
};

}  // namespace sapwood
