// SPDX-License-Identifier: Apache-2.0
// The copy side of the backward kernel: one thread brings K and V of an item, then Q, dO and their row statistics tile by
// tile.
#pragma once

#include "attention/backward_order.h"
#include "isa/warpgroup.h"

namespace sapwood::kernel {

template <class Traits>
struct BackwardProducer {
    const abi::BackwardParams& params;
    const BackwardShared<Traits>& shared;
    const typename Traits::Order::Tickets tickets;
    u32 ticket = 0;
    RingPosition<Traits::kItems> item;
    RingPosition<1> value;
    RingPosition<Traits::kStages> at;

    SAPWOOD_DEVICE BackwardProducer(const abi::BackwardParams& p, const BackwardShared<Traits>& s)
        : params(p), shared(s), tickets{{p.counters}} {}

    /// K as soon as the item before the last one is done with its own, V as soon as the last one has used its own for the last
    /// time.
    SAPWOOD_DEVICE void send_item(const U32x4& block, u32 part, u32 kv_head) {
        shared.items.wait_empty(item);
        const i32 key_begin = static_cast<i32>(block.x);
        shared.item(item.stage) = {key_begin, block.y, kv_head, block.w * params.group};
        shared.part(item.stage) = part;
        const bool empty = Traits::kArrays && block.w == 0;  // the arrays have left nothing of this part
        const u32 keys = shared.items.full(item.stage), values = shared.values.full(0);
        if (!empty) tensor_load<CacheHint::once>(shared.key_tile(item.stage), params.k_map, keys, key_begin, kv_head);
        mbarrier_arrive_bytes(keys, empty ? 0 : Traits::kKeyBytes);
        item.advance();
        shared.values.wait_empty(value);
        if (!empty) tensor_load<CacheHint::once>(shared.value_tile(), params.v_map, values, key_begin, kv_head);
        mbarrier_arrive_bytes(values, empty ? 0 : Traits::kValueBytes);
        value.advance();
    }

    SAPWOOD_DEVICE void send_rows(const U32x4& span, u32 row, u32 head, u32 turn) {
        const u64 statistics = static_cast<u64>(head) * params.row_tiles * Traits::kRows + row;
        const u32 stage = at.stage;
        shared.queries.wait_empty(at);
        U32x4* header = reinterpret_cast<U32x4*>(&shared.header(stage));
        header[0] = {row, span.z, span.w, head};
        if constexpr (Traits::Order::kFixed) shared.turn(stage) = turn;
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

    /// Row tiles of one query head. The next ticket is drawn at the last moment that hides the trip: whoever draws early starts
    /// late, and others may be waiting for it.
    SAPWOOD_DEVICE void send_head(const U32x4& block, u32 head, u32 first_turn, bool last) {
        const abi::RowSpan* next = params.spans + block.z;
        for (u32 tile = 0; tile < block.w;) {
            const U32x4 span = load_list_16<Traits::kArrays>(next++);
            for (u32 i = 0; i < span.y; ++i) {
                const u32 turn = first_turn + tile;
                if (++tile == block.w && last) ticket = tickets.draw();
                send_rows(span, span.x + i * Traits::kRows, head, turn);
            }
        }
    }

    SAPWOOD_DEVICE void run() {
        wait_for_earlier_kernels();
        const u32 count = params.key_block_count * params.kv_heads;
        for (ticket = tickets.first(); ticket < count;) {
            const TicketPlace place(ticket, params.key_block_count, params.section_heads);
            const U32x4 block = load_list_16<Traits::kArrays>(params.key_blocks + place.block);  // the words of an abi::KeyBlock
            abi::BlockTurns turns = {0, 0};
            if constexpr (Traits::Order::kFixed) turns = load_turns(params, place);
            send_item(block, turns.part, place.head / params.bundles);
            const u32 head = place.head * params.group;
            for (u32 g = 0; g < params.group; ++g) send_head(block, head + g, turns.first, g + 1 == params.group);
            if (block.w == 0) ticket = tickets.draw();  // keys that no row sees
        }
        shared.items.wait_empty(item);
        shared.item(item.stage) = {0, 0, 0, BackwardItem::kStop};
        mbarrier_arrive_bytes(shared.items.full(item.stage), 0);
        shared.queries.wait_empty(at);
        shared.header(at.stage).head = BackwardShared<Traits>::kNoTarget;
        mbarrier_arrive_bytes(shared.queries.full(at.stage), 0);
        tickets.leave();
    }
};

}  // namespace sapwood::kernel
