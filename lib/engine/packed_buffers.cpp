// SPDX-License-Identifier: Apache-2.0
#include "engine/packed_buffers.h"

#include "engine/argument_checks.h"
#include "engine/buffer_layout.h"

namespace sapwood {

PackedBuffers::PackedBuffers(std::shared_ptr<Memory> memory, const PackedPlan::Impl& plan, const PackedKernels& kernels,
                             std::uint64_t engine)
    : memory_(std::move(memory)), kernels_(kernels), engine_(engine) {
    const PackedProblem& problem = plan.problem;
    Layout layout;
    const std::size_t counters = layout.place<abi::Counters>(1);
    const std::size_t blocks = layout.place<abi::QueryBlock>(std::ssize(plan.list.blocks));
    const std::size_t spans = layout.place<abi::KeySpan>(std::ssize(plan.list.spans) + plan.arrays.spans);
    const std::size_t runs = layout.place<abi::KeyRun>(std::ssize(plan.list.runs));
    const std::size_t array_blocks = layout.place<abi::ArrayBlock>(std::ssize(plan.arrays.blocks));
    const std::size_t bounds = layout.place<abi::Bounds>(plan.arrays.bounds);
    block_ = memory_->allocate(layout.bytes());
    const auto at = [&](std::size_t offset) { return static_cast<void*>(static_cast<char*>(block_) + offset); };
    abi::PackedForwardParams& main = base_.main;
    main.counters = static_cast<abi::Counters*>(at(counters));
    main.query_blocks = static_cast<abi::QueryBlock*>(at(blocks));
    main.spans = static_cast<abi::KeySpan*>(at(spans));
    main.runs = static_cast<abi::KeyRun*>(at(runs));
    main.rows = static_cast<int>(plan.info.rows);
    main.keys = static_cast<int>(plan.info.keys);
    main.query_block_count = static_cast<unsigned>(plan.list.blocks.size());
    main.q_heads = static_cast<unsigned>(problem.q_heads / plan.config.heads);
    main.group = static_cast<unsigned>(problem.q_heads / problem.kv_heads / plan.config.heads);
    main.section_heads = static_cast<unsigned>(plan.section_heads);
    set_score(main, problem);
    base_.bounds.bounds = static_cast<abi::Bounds*>(at(bounds));
    base_.bounds.count = static_cast<unsigned>(plan.info.keys);
    base_.bounds.unit = abi::kKeyUnit;
    base_.tiles = {.start_q = nullptr,
                   .bounds = base_.bounds.bounds,
                   .runs = main.runs,
                   .blocks = static_cast<abi::ArrayBlock*>(at(array_blocks)),
                   .query_blocks = static_cast<abi::QueryBlock*>(at(blocks)),
                   .spans = static_cast<abi::KeySpan*>(at(spans)),
                   .query_block_count = main.query_block_count,
                   .units = static_cast<unsigned>(plan.arrays.bounds),
                   .block_kv = plan.config.block_kv};
}

PackedBuffers::~PackedBuffers() { memory_->free(block_); }

void PackedBuffers::upload(const PackedPlan::Impl& plan, void* stream) {
    const auto copy = [&](const void* to, const auto& from) {
        if (!from.empty()) memory_->copy_in(const_cast<void*>(to), from.data(), from.size() * sizeof(from[0]), stream);
    };
    copy(base_.main.query_blocks, plan.list.blocks);
    copy(base_.main.spans, plan.list.spans);
    copy(base_.main.runs, plan.list.runs);
    copy(base_.tiles.blocks, plan.arrays.blocks);
    uploaded_ = true;
}

void bind(const PackedPlan::Impl& plan, const PackedTensors& tensors, Memory& memory, PackedArguments& call) {
    using namespace arguments;
    abi::PackedForwardParams& params = call.main;
    const PackedProblem& problem = plan.problem;
    const std::int64_t dim = problem.head_dim, dim_v = problem.head_dim_v, q_heads = problem.q_heads, kv_heads = problem.kv_heads;
    params.q = tensor("q", tensors.q, tensors.q_token_stride, tensors.q_head_stride, q_heads, dim);
    params.k = tensor("k", tensors.k, tensors.k_token_stride, tensors.k_head_stride, kv_heads, dim);
    params.v = tensor("v", tensors.v, tensors.v_token_stride, tensors.v_head_stride, kv_heads, dim_v);
    params.out = written("out", tensors.out, tensors.out_token_stride, tensors.out_head_stride, q_heads, dim_v);
    if (tensors.lse != nullptr) check_pointer("lse", tensors.lse, 4);
    params.lse = tensors.lse;
    check_arrays(plan.arrays.present, tensors.start_q, tensors.end_k);
    params.start_q = call.tiles.start_q = tensors.start_q;
    params.end_k = call.bounds.values = tensors.end_k;
    if (plan.config.mainloop != Mainloop::wgmma) return;
    params.q_map = tensor_map(memory, problem.dtype, params.q, plan.info.rows, problem.q_heads, dim, plan.block_tokens(),
                              plan.config.heads > 1 ? plan.config.heads : 0);
    params.k_map = tensor_map(memory, problem.dtype, params.k, plan.info.keys, problem.kv_heads, dim, plan.config.block_kv);
    params.v_map = tensor_map(memory, problem.dtype, params.v, plan.info.keys, problem.kv_heads, dim_v, plan.config.block_kv);
}

}  // namespace sapwood
