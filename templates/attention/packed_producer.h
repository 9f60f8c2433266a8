// SPDX-License-Identifier: Apache-2.0
// The copy side of the packed kernels: draws work items (a query block of one head), walks their KV tiles and keeps the rings full,
// across item boundaries.
#pragma once

#include "attention/packed_copy.h"
#include "attention/packed_tickets.h"

namespace sapwood::kernel {

template <class Traits>
struct PackedProducer {
    using Copy = typename Select<Traits::kWarpgroups, TensorCopy<Traits>, AsyncCopy<Traits>>::Type;
    static constexpr u32 kCopyBarrier = 3;

    const abi::PackedForwardParams& params;
    const PackedShared<Traits>& shared;
    const Copy copy;
    RingPosition<Traits::kQueries> query;
    RingPosition<Traits::kStages> keys, values;

    SAPWOOD_DEVICE PackedProducer(const abi::PackedForwardParams& p, const PackedShared<Traits>& s)
        : params(p), shared(s), copy{p} {}

    SAPWOOD_DEVICE static bool leader() { return thread_id() == Traits::kComputeThreads; }

    /// A work item, and where its tiles begin.
    struct Work {
        abi::QueryBlock block;
        u32 head, kv_head;
    };
    SAPWOOD_DEVICE Work find(u32 ticket) const {
        const TicketPlace place(ticket, params.query_block_count, params.section_heads);
        const U32x4 words = load_list_16<Traits::kArrays>(params.query_blocks + place.block);
        return {{static_cast<i32>(words.x), words.y, words.z, words.w}, place.head, place.head / params.group};
    }

    /// Stands on the tiles of an item, one after the other.
    struct Walk {
        const abi::KeySpan* next;
        U32x4 span;    // key_begin, tiles, run_begin, runs
        U32x4 run[2];  // its first run
        u32 left = 0;  // tiles of the span

        SAPWOOD_DEVICE void step(const abi::PackedForwardParams& params) {
            if (left == 0) {
                span = load_list_16<Traits::kArrays>(next++);
                left = span.y;
                if (span.w != 0) {
                    run[0] = load_readonly_16(params.runs + span.z);
                    run[1] = load_readonly_16(reinterpret_cast<const U32x4*>(params.runs + span.z) + 1);
                }
            } else {
                span.x += Traits::kBlockKv;
            }
            --left;
        }
        SAPWOOD_DEVICE i32 key_begin() const { return static_cast<i32>(span.x); }
    };

    SAPWOOD_DEVICE void send_keys(const Walk& walk, u32 kv_head) {
        shared.keys.wait_empty(keys);
        if (leader()) {
            U32x4* header = reinterpret_cast<U32x4*>(&shared.header(keys.stage));
            header[0] = {walk.span.x, walk.span.z, walk.span.w, 0};
            if (walk.span.w != 0) {
                header[1] = walk.run[0];
                header[2] = walk.run[1];
            }
        }
        copy.keys(shared.key_tile(keys.stage), shared.keys.full(keys.stage), walk.key_begin(), kv_head);
        keys.advance();
    }
    SAPWOOD_DEVICE void send_values(i32 key_begin, u32 kv_head) {
        shared.values.wait_empty(values);
        copy.values(shared.value_tile(values.stage), shared.values.full(values.stage), key_begin, kv_head);
        values.advance();
    }
    SAPWOOD_DEVICE void write_item(i32 row_begin, u32 rows, u32 head, u32 tiles) {
        shared.query.wait_empty(query);
        if (leader()) shared.item(query.stage) = {row_begin, rows, head, tiles};
    }
    SAPWOOD_DEVICE void send_query(const Work& work) {
        write_item(work.block.row_begin, work.block.rows, work.head, work.block.tiles);
        copy.query(shared.query_block(query.stage), shared.query.full(query.stage), work.block.row_begin, work.head);
        query.advance();
    }

    u32 drawn = 0;  // the leader's next ticket, drawn while the item before it is under way
    Work upcoming{};
    u32 turn = 0;

    SAPWOOD_DEVICE u32 tickets() const { return params.query_block_count * params.q_heads; }
    SAPWOOD_DEVICE void draw() {
        if (leader()) drawn = Tickets{params.counters}.draw();
    }
    /// Hands the ticket to all copy threads and looks its item up. Two mailboxes in turn: the barrier of one separates its readers
    /// from its next writer.
    SAPWOOD_DEVICE u32 take_drawn() {
        u32 ticket = drawn;
        if constexpr (Copy::kThreads > 1) {
            u32* mailbox = shared.mailbox() + turn % 2;
            ++turn;
            if (leader()) *mailbox = drawn;
            named_sync(kCopyBarrier, Copy::kThreads);
            ticket = *mailbox;
        }
        if (ticket < tickets()) upcoming = find(ticket);
        return ticket;
    }

    /// K runs a tile ahead of V, as the products with them do. Returns the ticket behind this item's.
    SAPWOOD_DEVICE u32 send_item(const Work& work) {
        draw();
        u32 ticket = 0;
        Walk walk{params.spans + work.block.span_begin, {}, {}, 0};
        i32 before = 0;
        for (u32 tile = 0; tile < work.block.tiles; ++tile) {
            walk.step(params);
            send_keys(walk, work.kv_head);
            if (tile == 0) {
                send_query(work);
            } else {
                send_values(before, work.kv_head);
            }
            if (tile == 1) ticket = take_drawn();
            before = walk.key_begin();
        }
        if (work.block.tiles == 0) {
            send_query(work);
        } else {
            send_values(before, work.kv_head);
        }
        return work.block.tiles > 1 ? ticket : take_drawn();
    }

    SAPWOOD_DEVICE void run() {
        wait_for_earlier_kernels();
        u32 ticket = block_id();
        if (ticket < tickets()) upcoming = find(ticket);
        while (ticket < tickets()) {
            const Work work = upcoming;
            ticket = send_item(work);
        }
        write_item(0, 0, 0, PackedItem::kStop);
        copy.nothing(shared.query.full(query.stage));
        if (leader()) Tickets{params.counters}.leave();
    }
};

}  // namespace sapwood::kernel
