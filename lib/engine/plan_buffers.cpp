// SPDX-License-Identifier: Apache-2.0
#include "engine/plan_buffers.h"

#include <limits>

#include "engine/buffer_layout.h"

namespace sapwood {
PlanBuffers::PlanBuffers(std::shared_ptr<Memory> memory, const DecodePlan::Impl& plan, Kernel* kernel, std::uint64_t engine)
    : memory_(std::move(memory)), kernel_(kernel), engine_(engine) {
    const DecodeProblem& problem = plan.problem;
    Layout layout;
    const std::size_t header = layout.place<abi::WorkHeader>(1);
    const std::size_t counters = layout.place<abi::Counters>(1);
    const std::size_t items = layout.place<abi::Item>(plan.capacity.items);
    const std::size_t requests = layout.place<abi::ItemRequest>(plan.capacity.requests);
    const std::size_t chunks = layout.place<abi::Chunk>(plan.capacity.chunks);
    const std::size_t merges = layout.place<abi::Merge>(plan.capacity.merges);
    const std::size_t masks = layout.place<std::uint32_t>(plan.capacity.mask_rows * plan.capacity.mask_words);
    const std::size_t gather = layout.place<std::uint32_t>(plan.capacity.gather);
    const std::size_t lse = layout.place<float>(plan.capacity.slots * problem.q_heads);
    const std::size_t out = layout.place<std::uint16_t>(plan.capacity.slots * problem.q_heads * problem.head_dim_v);
    block_ = memory_->allocate(layout.bytes());
    const auto at = [&](std::size_t offset) { return static_cast<void*>(static_cast<char*>(block_) + offset); };
    base_.header = static_cast<abi::WorkHeader*>(at(header));
    base_.counters = static_cast<abi::Counters*>(at(counters));
    base_.items = static_cast<abi::Item*>(at(items));
    base_.requests = static_cast<abi::ItemRequest*>(at(requests));
    base_.chunks = static_cast<abi::Chunk*>(at(chunks));
    base_.merges = static_cast<abi::Merge*>(at(merges));
    if (plan.capacity.mask_rows > 0) base_.masks = static_cast<std::uint32_t*>(at(masks));
    if (plan.capacity.gather > 0) base_.gather = static_cast<std::uint32_t*>(at(gather));
    base_.mask_words = static_cast<unsigned>(plan.capacity.mask_words);
    base_.partial_exponent = static_cast<float*>(at(lse));
    base_.partial_out = at(out);
    base_.kv_heads = static_cast<unsigned>(problem.kv_heads);
    base_.item_capacity = static_cast<unsigned>(plan.capacity.items);
    set_score(base_, problem);
}

abi::MappedDecodeParams PlanBuffers::mapped(const DecodePlan::Impl& plan, const abi::DecodeParams& params) {
    const DecodeProblem& problem = plan.problem;
    const auto map = [&](abi::TensorMap& to, const void* data, std::int64_t dim, std::int64_t token_stride,
                         std::int64_t head_stride) {
        // Pages are anywhere: what a call may read is the page table's affair, not the map's.
        to = memory_->tensor_map({.data = data,
                                  .bf16 = problem.dtype == DType::bf16,
                                  .rows = std::numeric_limits<std::int32_t>::max(),
                                  .heads = problem.kv_heads,
                                  .dim = dim,
                                  .token_stride = token_stride,
                                  .head_stride = head_stride,
                                  .box_groups = abi::kChunkTokens / 8});
    };
    abi::MappedDecodeParams fresh = mapped_;
    if (fresh.k != params.k || fresh.k_token_stride != params.k_token_stride || fresh.k_head_stride != params.k_head_stride)
        map(fresh.k_map, params.k, problem.head_dim, params.k_token_stride, params.k_head_stride);
    if (fresh.v != params.v || fresh.v_token_stride != params.v_token_stride || fresh.v_head_stride != params.v_head_stride)
        map(fresh.v_map, params.v, problem.head_dim_v, params.v_token_stride, params.v_head_stride);
    static_cast<abi::DecodeParams&>(fresh) = params;
    mapped_ = fresh;
    return fresh;
}

PlanBuffers::~PlanBuffers() { memory_->free(block_); }

void PlanBuffers::upload(DecodePlan::Impl& plan, void* stream) {
    WorkList& list = plan.list;
    const auto copy = [&](const void* to, const auto& from, std::size_t begin, std::size_t end) {
        constexpr std::size_t size = sizeof(from[0]);
        if (begin == end) return;
        char* target = static_cast<char*>(const_cast<void*>(to)) + begin * size;
        memory_->copy_in(target, from.data() + begin, (end - begin) * size, stream);
    };
    if (revision_ != plan.revision) {
        const abi::WorkHeader header = {static_cast<unsigned>(list.items.size()), static_cast<unsigned>(list.merges.size()), {}};
        memory_->copy_in(const_cast<abi::WorkHeader*>(base_.header), &header, sizeof(header), stream);
        copy(base_.items, list.items, 0, list.items.size());
        copy(base_.requests, list.requests, 0, list.requests.size());
        copy(base_.chunks, list.chunks, 0, list.chunks.size());
        copy(base_.merges, list.merges, 0, list.merges.size());
        copy(base_.masks, list.masks, 0, list.masks.size());
        copy(base_.gather, list.gather, 0, list.gather.size());
    } else {
        copy(base_.chunks, list.chunks, list.changed_begin, list.changed_end);
    }
    revision_ = plan.revision;
    list.changed_begin = list.changed_end = 0;
}

}  // namespace sapwood
