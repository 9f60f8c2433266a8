// SPDX-License-Identifier: Apache-2.0
// The copy warps: draw work items, and stream Q, then K and V tiles, through the ring, running ahead of the compute warps across
// item boundaries as far as the ring allows.
#pragma once

#include "attention/decode_copies.h"

namespace sapwood::kernel {

template <class Traits>
struct DecodeProducer : DecodeCopies<Traits> {
    using Copies = DecodeCopies<Traits>;
    using Copies::at;
    using Copies::item;
    using Copies::kAhead;
    using Copies::kThreads;
    using Copies::leader;
    using Copies::params;
    using Copies::shared;
    using Copies::warp;
    using typename Copies::Chunks;
    using typename Copies::QueryRows;
    using typename Copies::Scales;
    static constexpr u32 kCopyBarrier = 2;

    U32x4 header{};  // of the launch

    using Copies::Copies;

    /// What the work list says of an item's beginning: nothing that a kernel before this one could have written.
    struct Beginning {
        u32 chunk[2 * kAhead];
        QueryRows query;
        u32 first_request;  // of a kernel that copies masks
    };
    SAPWOOD_DEVICE Beginning find_beginning() const {
        Beginning found;
        SAPWOOD_UNROLL for (u32 i = 0; i < 2 * kAhead; ++i) found.chunk[i] = this->load_chunk(i);
        found.query = this->find_query();
        found.first_request = Traits::kMasksStaged ? this->request_at(0) : 0;
        return found;
    }

    SAPWOOD_DEVICE void send_item(u32 kv_head, const Beginning& beginning) {
        // Two chains of dependent look-ups, chunk then page and request then row, in flight together; registers as a queue, shifted
        // once a tile, because a ring would index them at run time.
        u32 chunk[2 * kAhead];
        u32 found[kAhead];
        Scales scales;
        if constexpr (Traits::KvElement::kScaled) scales = this->find_scales(kv_head);
        if constexpr (Copies::kKeepsHeads) {
            this->k_columns = this->find_k_columns(kv_head);
            this->v_columns = this->find_v_columns(kv_head);
        }
        SAPWOOD_UNROLL for (u32 i = 0; i < 2 * kAhead; ++i) chunk[i] = beginning.chunk[i];
        SAPWOOD_UNROLL for (u32 i = 0; i < kAhead; ++i) found[i] = this->look_up_row(chunk[i]);
        this->send_query(kv_head, beginning.query, scales);
        for (u32 tile = 0; tile < item.tiles; ++tile) {
            const u32 after = this->load_chunk(tile + 2 * kAhead);
            const u32 found_after = this->look_up_row(chunk[kAhead]);
            this->send_tile(chunk[0], found[0], beginning.first_request, kv_head);
            SAPWOOD_UNROLL for (u32 i = 0; i + 1 < 2 * kAhead; ++i) chunk[i] = chunk[i + 1];
            SAPWOOD_UNROLL for (u32 i = 0; i + 1 < kAhead; ++i) found[i] = found[i + 1];
            chunk[2 * kAhead - 1] = after;
            found[kAhead - 1] = found_after;
        }
        if (RowBlocks<Traits>(item.requests).parts > 1) this->send_empty(abi::StageKind::scratch, 0, 0);
    }

    /// A ticket is an item for one KV head. By one head nothing is divided: it would be 100 cycles on the way to the first key.
    SAPWOOD_DEVICE u32 item_of(u32 ticket) const { return params.kv_heads == 1 ? ticket : ticket / params.kv_heads; }
    SAPWOOD_DEVICE abi::Item load_item(u32 index) const {
        const U32x4 bits = load_readonly_16(params.items + index);
        return {bits.x, bits.y, bits.z, static_cast<u16>(bits.w), static_cast<u16>(Traits::kMask ? bits.w >> 16 : 0)};
    }

    /// Hands the leader's ticket to all copy warps. Two mailboxes in turn: the barrier of one draw separates a mailbox's readers
    /// from its next writer.
    SAPWOOD_DEVICE u32 share(u32 turn, u32 drawn) {
        if (leader()) shared.mailbox()[turn % 2] = drawn;
        named_sync(kCopyBarrier, kThreads);
        return shared.mailbox()[turn % 2];
    }

    /// The launch's counts and the block's first item, before the ring is ready.
    SAPWOOD_DEVICE void look_up() {
        Chunks::prepare(params);
        header = load_readonly_16(params.header);
        const u32 index = item_of(block_id());
        item = load_item(index < params.item_capacity ? index : 0);
    }

    SAPWOOD_DEVICE void run() {
        const u32 tickets = header.x * params.kv_heads, merges = header.y;
        // The first item is the block's own number if nobody waits for anybody. With merges blocks do wait, and a block that is not
        // resident yet must not hold work that others wait for: then every ticket is drawn. Either way a launch draws the same
        // number of times, one for each item that is drawn and one for each block that finds none, and the counter comes round.
        const u32 base = merges == 0 ? grid_size() : 0;
        const u32 limit = tickets + (merges == 0 ? 0 : grid_size()) - 1;
        u32 ticket = block_id();
        if (merges != 0) {
            ticket = share(1, leader() ? draw(0, limit) : 0);
            if (ticket < tickets) item = load_item(item_of(ticket));
        }
        Beginning beginning;
        if (ticket < tickets) beginning = find_beginning();
        // All blocks that will ever wait for each other are resident once all have said so, and the next kernel waits by itself. It
        // may be this one again, which draws before it waits: so not before this block has drawn its last.
        if (leader() && (merges == 0 || ticket >= tickets)) let_later_kernels_start();
        // So far only the work list and its counter were touched. Tensors and page table are the earlier kernels' until they have
        // ended; all that the compute warps touch follows from what is copied after this.
        wait_for_earlier_kernels();
        for (u32 turn = 0; ticket < tickets; ++turn) {
            u32 drawn = 0;
            const auto first = at;
            if (leader() && merges == 0) drawn = draw(base, limit);  // travels with the item
            send_item(ticket - item_of(ticket) * params.kv_heads, beginning);
            if (leader() && merges != 0) {
                wait_for_room(first);
                drawn = draw(base, limit);
                if (drawn >= tickets) let_later_kernels_start();
            }
            ticket = share(turn, drawn);
            if (ticket < tickets) {
                item = load_item(item_of(ticket));
                beginning = find_beginning();
            }
        }
        this->send_empty(abi::StageKind::stop, tickets, merges);
    }
    /// Until the item that begins at `first` has been started and the next stage is free. A block that drew again at once would
    /// take what is meant for one that is only just about to start: twice the time of an item.
    SAPWOOD_DEVICE void wait_for_room(const RingPosition<Traits::kStages>& first) {
        if (item.tiles + 2 <= Traits::kStages) {  // or the ring has come round to it
            auto again = first;
            again.parity ^= 1;
            shared.ring.wait_empty(again);
        }
        shared.ring.wait_empty(at);
    }
    SAPWOOD_DEVICE u32 draw(u32 base, u32 limit) const { return base + atomic_inc_relaxed(&params.counters->ticket, limit); }
};

}  // namespace sapwood::kernel
