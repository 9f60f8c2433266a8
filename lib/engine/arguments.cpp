// SPDX-License-Identifier: Apache-2.0
#include "engine/arguments.h"

#include <cstdint>
#include <limits>

#include "engine/argument_checks.h"
#include "plan/tiles.h"

namespace sapwood {

using namespace arguments;

namespace {

/// Factors of the KV heads: refused where nothing would be multiplied by them.
const float* scales(const char* what, const float* given, KvDType dtype) {
    if (given == nullptr) return nullptr;
    if (dtype != KvDType::e4m3)
        refuse(what, std::string("is given, but the plan's K and V are ") + kv_dtype_name(dtype) +
                         ", which has no factors; plan with kv_dtype e4m3");
    check_pointer(what, given, 4);
    return given;
}

void bind_masks(std::int32_t columns, const DecodeTensors& tensors, abi::DecodeParams& params) {
    check_pointer("mask", tensors.mask, 4);
    const std::int64_t least = (columns + 31) / 32, words = tensors.mask_row_words == 0 ? least : tensors.mask_row_words;
    if (words < least || words > std::numeric_limits<std::int32_t>::max()) {
        refuse("mask_row_words", "is " + std::to_string(words) + "; the longest draft has " + std::to_string(columns) +
                                     " tokens, which take " + std::to_string(least) + " words of 32");
    }
    params.masks = tensors.mask;
    params.mask_words = static_cast<unsigned>(words);
}

}  // namespace

void bind(const DecodePlan::Impl& plan, const DecodeTensors& tensors, abi::DecodeParams& params) {
    const DecodeProblem& problem = plan.problem;
    constexpr std::int64_t k32 = std::numeric_limits<std::uint32_t>::max();
    constexpr std::int64_t k64 = std::numeric_limits<std::int64_t>::max() / 4;
    check_pointer("q", tensors.q, kAlign);
    check_pointer("k", tensors.k, kAlign);
    check_pointer("v", tensors.v, kAlign);
    check_pointer("out", tensors.out, kAlign);
    if (tensors.lse != nullptr) check_pointer("lse", tensors.lse, 4);
    if (problem.page_size > 0) check_pointer("page_table", tensors.page_table, 4);
    if (problem.page_size == 0 && tensors.page_table != nullptr) {
        refuse("page_table", "is given, but the plan is for contiguous KV (page_size 0)");
    }
    if (plan.masks_on_device) {
        bind_masks(plan.mask_columns, tensors, params);
    } else if (tensors.mask != nullptr) {
        refuse("mask", "is given, but no draft of the plan has its mask on the device (DraftMask::on_device)");
    }
    params.q = tensors.q;
    params.k = tensors.k;
    params.v = tensors.v;
    params.out = tensors.out;
    params.lse = tensors.lse;
    params.page_table = tensors.page_table;
    params.k_scale = scales("k_scale", tensors.k_scale, problem.kv_dtype);
    params.v_scale = scales("v_scale", tensors.v_scale, problem.kv_dtype);
    const std::int64_t d = problem.head_dim, dv = problem.head_dim_v;
    const auto kv = static_cast<std::int64_t>(kv_dtype_bytes(problem.kv_dtype, problem.dtype));
    params.q_request_stride = stride("q_request_stride", tensors.q_request_stride, problem.q_heads * d, k64);
    params.out_request_stride = stride("out_request_stride", tensors.out_request_stride, problem.q_heads * dv, k64);
    params.q_head_stride = static_cast<unsigned>(stride("q_head_stride", tensors.q_head_stride, d, k32));
    params.out_head_stride = static_cast<unsigned>(stride("out_head_stride", tensors.out_head_stride, dv, k32));
    params.k_token_stride = static_cast<unsigned>(stride("k_token_stride", tensors.k_token_stride, problem.kv_heads * d, k32, kv));
    params.v_token_stride = static_cast<unsigned>(stride("v_token_stride", tensors.v_token_stride, problem.kv_heads * dv, k32, kv));
    if (params.out_head_stride < dv * kElement || params.out_request_stride < dv * kElement) {
        refuse("out", "has a head or request stride below its head dim " + std::to_string(dv) + ": rows would overlap");
    }
    params.k_head_stride = stride("k_head_stride", tensors.k_head_stride, d, k64, kv);
    params.v_head_stride = stride("v_head_stride", tensors.v_head_stride, dv, k64, kv);
}

}  // namespace sapwood
