// SPDX-License-Identifier: Apache-2.0
#include "engine/backward_buffers.h"

#include "engine/argument_checks.h"
#include "engine/buffer_layout.h"

namespace sapwood {

BackwardBuffers::BackwardBuffers(std::shared_ptr<Memory> memory, const PackedBackwardPlan::Impl& plan,
                                 const BackwardKernels& kernels, std::uint64_t engine)
    : memory_(std::move(memory)), kernels_(kernels), engine_(engine) {
    const PackedProblem& problem = plan.problem;
    const std::int64_t padded_rows = plan.row_tiles() * abi::kRowTile * problem.q_heads;
    Layout layout;
    const std::size_t counters = layout.place<abi::Counters>(1);
    const std::size_t blocks = layout.place<abi::KeyBlock>(std::ssize(plan.list.blocks));
    const std::size_t spans = layout.place<abi::RowSpan>(std::ssize(plan.list.spans) + plan.arrays.spans);
    const std::size_t runs = layout.place<abi::KeyRun>(std::ssize(plan.list.runs));
    const std::size_t lse = layout.place<float>(padded_rows);
    const std::size_t row_sums = layout.place<float>(padded_rows);
    const std::size_t dq_sums = layout.place<float>(padded_rows * problem.head_dim);
    const std::size_t slots = layout.place<abi::KeySlot>(std::ssize(plan.list.slots));
    // Counters of arrivals lie behind the sums: what sets these to zero before each launch does so to them.
    const std::size_t kv_sums = layout.place<float>(plan.kv_sums() + plan.arrivals());
    const std::size_t block_turns = layout.place<abi::BlockTurns>(std::ssize(plan.list.block_turns));
    const std::size_t turns = layout.place<std::uint32_t>(std::ssize(plan.list.turns));
    const std::size_t additions = layout.place<std::uint32_t>(plan.row_tiles());
    const std::size_t array_blocks = layout.place<abi::ArrayBlock>(std::ssize(plan.arrays.blocks));
    const std::size_t bounds = layout.place<abi::Bounds>(plan.arrays.bounds);
    block_ = memory_->allocate(layout.bytes());
    const auto at = [&](std::size_t offset) { return static_cast<void*>(static_cast<char*>(block_) + offset); };
    abi::BackwardParams& main = base_.main;
    main.counters = static_cast<abi::Counters*>(at(counters));
    main.key_blocks = static_cast<abi::KeyBlock*>(at(blocks));
    main.spans = static_cast<abi::RowSpan*>(at(spans));
    main.runs = static_cast<abi::KeyRun*>(at(runs));
    main.lse_log2 = base_.prepare.lse_log2 = static_cast<float*>(at(lse));
    main.row_sums = base_.prepare.row_sums = static_cast<float*>(at(row_sums));
    base_.prepare.dq_sums = main.dq_sums = static_cast<float*>(at(dq_sums));
    base_.finish.dq_sums = main.dq_sums;
    base_.finish.key_slots = static_cast<abi::KeySlot*>(at(slots));
    base_.finish.slots = static_cast<unsigned>(plan.list.slots.size());
    base_.finish.kv_heads = static_cast<unsigned>(problem.kv_heads);
    base_.prepare.kv_sums = main.kv_sums = static_cast<float*>(at(kv_sums));
    base_.finish.kv_sums = main.kv_sums;
    base_.prepare.kv_sums_count = plan.kv_sums() + plan.arrivals();
    if (plan.options.deterministic) {
        main.block_turns = static_cast<abi::BlockTurns*>(at(block_turns));
        main.turns = static_cast<std::uint32_t*>(at(turns));
    }
    main.arrivals = reinterpret_cast<std::uint32_t*>(main.kv_sums + plan.kv_sums());
    auto* const row_additions = static_cast<std::uint32_t*>(at(additions));
    if (plan.writes_first()) base_.prepare.row_additions = row_additions;
    base_.prepare.rows = base_.finish.rows = static_cast<int>(plan.info.rows);
    main.rows = static_cast<int>(plan.info.rows), main.keys = static_cast<int>(plan.info.keys);
    main.row_tiles = base_.prepare.row_tiles = base_.finish.row_tiles = static_cast<unsigned>(plan.row_tiles());
    base_.prepare.q_heads = base_.finish.q_heads = static_cast<unsigned>(problem.q_heads);
    main.key_block_count = static_cast<unsigned>(plan.list.blocks.size());
    main.bundles = static_cast<unsigned>(plan.bundles);
    main.kv_heads = static_cast<unsigned>(problem.kv_heads * plan.bundles);
    main.group = static_cast<unsigned>(problem.q_heads / problem.kv_heads / plan.bundles);
    main.section_heads = static_cast<unsigned>(plan.section_heads);
    main.scale = base_.finish.scale = problem.scale;
    set_score(main, problem);
    base_.bounds.bounds = static_cast<abi::Bounds*>(at(bounds));
    base_.bounds.count = static_cast<unsigned>(plan.info.rows);
    base_.bounds.unit = abi::kRowTile;
    base_.bounds.zeros = row_additions;  // a bound for each row tile
    base_.tiles = {.end_k = nullptr,
                   .bounds = base_.bounds.bounds,
                   .runs = main.runs,
                   .blocks = static_cast<abi::ArrayBlock*>(at(array_blocks)),
                   .key_blocks = static_cast<abi::KeyBlock*>(at(blocks)),
                   .spans = static_cast<abi::RowSpan*>(at(spans)),
                   .row_additions = row_additions,
                   .key_block_count = main.key_block_count,
                   .block_kv = plan.config.block_kv};
}

BackwardBuffers::~BackwardBuffers() { memory_->free(block_); }

void BackwardBuffers::upload(const PackedBackwardPlan::Impl& plan, void* stream) {
    const auto copy = [&](const void* to, const auto& from) {
        if (!from.empty()) memory_->copy_in(const_cast<void*>(to), from.data(), from.size() * sizeof(from[0]), stream);
    };
    copy(base_.main.key_blocks, plan.list.blocks);
    copy(base_.main.spans, plan.list.spans);
    copy(base_.main.runs, plan.list.runs);
    copy(base_.main.block_turns, plan.list.block_turns);
    copy(base_.main.turns, plan.list.turns);
    if (!plan.arrays.present) copy(base_.tiles.row_additions, plan.list.row_additions);
    copy(base_.tiles.blocks, plan.arrays.blocks);
    copy(base_.finish.key_slots, plan.list.slots);
    uploaded_ = true;
}

void bind(const PackedBackwardPlan::Impl& plan, const PackedGradients& t, Memory& memory, BackwardArguments& call) {
    using namespace arguments;
    const PackedProblem& problem = plan.problem;
    const std::int64_t dim = problem.head_dim, dim_v = problem.head_dim_v, q_heads = problem.q_heads, kv_heads = problem.kv_heads;
    const abi::Tensor q = tensor("q", t.q, t.q_token_stride, t.q_head_stride, q_heads, dim);
    const abi::Tensor k = tensor("k", t.k, t.k_token_stride, t.k_head_stride, kv_heads, dim);
    const abi::Tensor v = tensor("v", t.v, t.v_token_stride, t.v_head_stride, kv_heads, dim_v);
    const abi::Tensor dout = tensor("dout", t.dout, t.dout_token_stride, t.dout_head_stride, q_heads, dim_v);
    call.prepare.out = tensor("out", t.out, t.out_token_stride, t.out_head_stride, q_heads, dim_v);
    call.prepare.dout = dout;
    call.finish.dq = written("dq", t.dq, t.dq_token_stride, t.dq_head_stride, q_heads, dim);
    call.main.dk = written("dk", t.dk, t.dk_token_stride, t.dk_head_stride, kv_heads, dim);
    call.main.dv = written("dv", t.dv, t.dv_token_stride, t.dv_head_stride, kv_heads, dim_v);
    call.finish.dk = call.main.dk;
    call.finish.dv = call.main.dv;
    check_pointer("lse", t.lse, 4);
    if (t.dlse != nullptr) check_pointer("dlse", t.dlse, 4);
    call.prepare.lse = t.lse;
    call.prepare.dlse = t.dlse;
    check_arrays(plan.arrays.present, t.start_q, t.end_k);
    call.bounds.values = call.main.start_q = t.start_q;
    call.tiles.end_k = call.main.end_k = t.end_k;
    call.main.q = q, call.main.k = k, call.main.v = v, call.main.dout = dout;
    if (plan.config.mainloop != Mainloop::wgmma) return;
    call.main.q_map = tensor_map(memory, problem.dtype, q, plan.info.rows, q_heads, dim, abi::kRowTile);
    call.main.dout_map = tensor_map(memory, problem.dtype, dout, plan.info.rows, q_heads, dim_v, abi::kRowTile);
    call.main.k_map = tensor_map(memory, problem.dtype, k, plan.info.keys, kv_heads, dim, plan.config.block_kv);
    call.main.v_map = tensor_map(memory, problem.dtype, v, plan.info.keys, kv_heads, dim_v, plan.config.block_kv);
}

}  // namespace sapwood
