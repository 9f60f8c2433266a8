// SPDX-License-Identifier: Apache-2.0
// The copy side of the backward kernel: one thread brings K and V of an item once, then Q, dO and their row statistics tile by
// tile; another one adds finished tiles of dQ to the sums in global memory.
#pragma once

#include "attention/backward_traits.h"
#include "attention/packed_tickets.h"
#include "isa/warpgroup.h"

namespace sapwood::kernel {

template <class Traits>
struct BackwardProducer {
    const abi::BackwardParams& params;
    const BackwardShared<Traits>& shared;
    RingPosition<1> item;
    RingPosition<Traits::kStages> at;

    SAPWOOD_DEVICE BackwardProducer(const abi::BackwardParams& p, const BackwardShared<Traits>& s) : params(p), shared(s) {}

    SAPWOOD_DEVICE void send_item(const U32x4& block, u32 kv_head) {
        shared.item_ring.wait_empty(item);
        const i32 key_begin = static_cast<i32>(block.x);
        shared.item() = {key_begin, block.y, kv_head, block.w * params.group};
        const u32 barrier = shared.item_ring.full(0);
        if (Traits::kArrays && block.w == 0) {  // the arrays have left nothing of this part
            mbarrier_arrive_bytes(barrier, 0);
        } else {
            tensor_load<CacheHint::once>(shared.address, params.k_map, barrier, key_begin, kv_head);
            tensor_load<CacheHint::once>(shared.values(), params.v_map, barrier, key_begin, kv_head);
            mbarrier_arrive_bytes(barrier, Traits::kKeyBytes + Traits::kValueBytes);
        }
        item.advance();
    }

    SAPWOOD_DEVICE void send_rows(const U32x4& span, u32 row, u32 head) {
        const u64 statistics = static_cast<u64>(head) * params.row_tiles * Traits::kRows + row;
        const u32 stage = at.stage;
        shared.queries.wait_empty(at);
        U32x4* header = reinterpret_cast<U32x4*>(&shared.header(stage));
        header[0] = {row, span.z, span.w, head};
        if (span.w != 0) {  // again for every tile: this thread has few registers, and time
            const auto* run = reinterpret_cast<const U32x4*>(params.runs + span.z);
            header[1] = load_readonly_16(run);
            header[2] = load_readonly_16(run + 1);
        }
        const u32 queries = shared.queries.full(stage), douts = shared.douts.full(stage);
        tensor_load<CacheHint::again>(shared.query(stage), params.q_map, queries, static_cast<i32>(row), head);
        bulk_load(shared.address + Traits::kLse + stage * Traits::kRows * 4, params.lse_log2 + statistics, Traits::kRows * 4,
                  queries);
        mbarrier_arrive_bytes(queries, Traits::kQueryBytes + Traits::kRows * 4);
        shared.douts.wait_empty(at);
        tensor_load<CacheHint::again>(shared.dout(stage), params.dout_map, douts, static_cast<i32>(row), head);
        bulk_load(shared.address + Traits::kRowSums + stage * Traits::kRows * 4, params.row_sums + statistics, Traits::kRows * 4,
                  douts);
        mbarrier_arrive_bytes(douts, Traits::kDOutBytes + Traits::kRows * 4);
        at.advance();
    }

    /// Row tiles of one query head.
    SAPWOOD_DEVICE void send_head(const U32x4& block, u32 head) {
        const abi::RowSpan* next = params.spans + block.z;
        for (u32 tile = 0; tile < block.w;) {
            const U32x4 span = load_list_16<Traits::kArrays>(next++);
            for (u32 i = 0; i < span.y; ++i, ++tile) send_rows(span, span.x + i * Traits::kRows, head);
        }
    }

    SAPWOOD_DEVICE void run() {
        wait_for_earlier_kernels();
        const Tickets tickets{params.counters};
        const u32 count = params.key_block_count * params.kv_heads;
        for (u32 ticket = block_id(); ticket < count;) {
            const TicketPlace place(ticket, params.key_block_count, params.section_heads);
            const U32x4 block = load_list_16<Traits::kArrays>(params.key_blocks + place.block);  // the words of an abi::KeyBlock
            const u32 drawn = tickets.draw();
            send_item(block, place.head);
            for (u32 g = 0; g < params.group; ++g) send_head(block, place.head * params.group + g);
            ticket = drawn;
        }
        shared.item_ring.wait_empty(item);
        shared.item() = {0, 0, 0, BackwardItem::kStop};
        mbarrier_arrive_bytes(shared.item_ring.full(0), 0);
        tickets.leave();
    }

    /// The other thread: tiles of dQ to global memory, two halves at a time.
    SAPWOOD_DEVICE void add_sums() const {
        wait_for_earlier_kernels();
        constexpr u32 kTile = Traits::kRows * Traits::kHeadDim;
        RingPosition<1> sum;
        for (;;) {
            for (u32 w = 0; w < 2; ++w) {
                shared.sums(w).wait_full(sum);
                const u32 target = shared.target(w);
                if (target == BackwardShared<Traits>::kNoTarget) {
                    bulk_wait();
                    return;
                }
                bulk_reduce_add(params.dq_sums + static_cast<u64>(target) * kTile + w * (kTile / 2), shared.sum(w),
                                Traits::kSumBytes);
                bulk_commit();
            }
            bulk_wait_read<1>();
            mbarrier_arrive(shared.sums(0).empty(0));
            bulk_wait_read<0>();
            mbarrier_arrive(shared.sums(1).empty(0));
            sum.advance();
        }
    }
};

}  // namespace sapwood::kernel
