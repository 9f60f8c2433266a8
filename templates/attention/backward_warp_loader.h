// SPDX-License-Identifier: Apache-2.0
// What brings work into a block of the packed backward kernel with the mma.sync main loop: every thread copies its share of the
// tiles by cp.async, and one of them draws items and reads the tile list, two steps ahead. There are no copy warps, because they
// would take registers from dK and dV.
#pragma once

#include "attention/backward_warp_order.h"
#include "attention/packed_copy.h"
#include "attention/packed_tickets.h"

namespace sapwood::kernel {

template <class Traits>
struct BackwardWarpLoader {
    const abi::BackwardParams& params;
    const BackwardWarpShared<Traits>& shared;
    static constexpr bool kFixed = Traits::Order::kFixed;

    SAPWOOD_DEVICE typename Traits::Order::Tickets tickets() const { return {{params.counters}}; }
    /// Tickets are thread 0's matter.
    SAPWOOD_DEVICE u32 first_ticket() const { return !kFixed || thread_id() == 0 ? tickets().first() : 0; }
    /// Of thread 0, in an item's last step: where order is fixed others may wait for what has been drawn, so it is drawn late.
    SAPWOOD_DEVICE void draw_next() const {
        if constexpr (kFixed) shared.item().next = tickets().draw();
    }

    /// Of thread 0: the item of a ticket, and the headers of its first two steps.
    SAPWOOD_DEVICE void open_item(u32 ticket, u32 step) const {
        if (ticket >= params.key_block_count * params.kv_heads) {
            shared.item().steps = BackwardWarpItem::kStop;
            tickets().leave();
            return;
        }
        const TicketPlace place(ticket, params.key_block_count, params.section_heads);
        const U32x4 block = load_list_16<Traits::kArrays>(params.key_blocks + place.block);  // the words of an abi::KeyBlock
        const u32 next = !kFixed || block.w == 0 ? tickets().draw() : 0;
        const u32 steps = block.w * params.group * (abi::kRowTile / Traits::kRows);
        shared.item() = {static_cast<i32>(block.x), block.y & 0xffff, block.y >> 16, place.head / params.bundles, steps, next};
        shared.walk() = {block.z, block.w, block.z, block.w, 0, 0, 0, 0, place.head * params.group};
        if constexpr (kFixed) {
            const abi::BlockTurns turns = load_turns(params, place);
            shared.turns() = {turns.first, turns.part, 0};
        }
        if (steps > 0) next_header(step);
        if (steps > 1) next_header(step + 1);
    }

    /// Of thread 0, as often as the item has steps.
    SAPWOOD_DEVICE void next_header(u32 step) const {
        BackwardWalk& walk = shared.walk();
        if (walk.steps_left == 0) {
            if (walk.tiles_left == 0) {
                walk.span = walk.span_begin;
                walk.tiles_left = walk.tiles;
                ++walk.head;
                if constexpr (kFixed) shared.turns().steps = 0;
            }
            const U32x4 span = load_list_16<Traits::kArrays>(params.spans + walk.span++);
            walk.row = static_cast<i32>(span.x);
            walk.steps_left = span.y * (abi::kRowTile / Traits::kRows);
            walk.tiles_left -= span.y;
            walk.run_begin = span.z;
            walk.runs = span.w;
        }
        U32x4* header = reinterpret_cast<U32x4*>(&shared.header(step));
        header[0] = {static_cast<u32>(walk.row), walk.run_begin, walk.runs, walk.head};
        if (walk.runs != 0) {
            const auto* run = reinterpret_cast<const U32x4*>(params.runs + walk.run_begin);
            header[1] = load_readonly_16(run);
            header[2] = load_readonly_16(run + 1);
        }
        if constexpr (kFixed) {
            BackwardWarpTurns& turns = shared.turns();
            shared.before(step) = load_readonly_4(params.turns + turns.first + turns.steps++ / (abi::kRowTile / Traits::kRows));
        }
        walk.row += static_cast<i32>(Traits::kRows);
        --walk.steps_left;
    }

    SAPWOOD_DEVICE void copy_item() const {
        const BackwardWarpItem& item = shared.item();
        copy<typename Traits::KTile, Traits::kKeys, Traits::kHeadDim / 8>(shared.address, params.k, item.key_begin, item.kv_head,
                                                                          params.keys);
        copy<typename Traits::VTile, Traits::kKeys, Traits::kHeadDimV / 8>(shared.values(), params.v, item.key_begin, item.kv_head,
                                                                           params.keys);
    }
    /// The rows of a step, and whatever this thread has copied before.
    SAPWOOD_DEVICE void copy_step(u32 step) const {
        const TileHeader& tile = shared.header(step);
        const i32 row = tile.begin;
        const u32 head = tile.head, thread = thread_id();
        copy<typename Traits::QTile, Traits::kRows, Traits::kHeadDim / 8>(shared.query(step), params.q, row, head, params.rows);
        copy<typename Traits::DOutTile, Traits::kRows, Traits::kHeadDimV / 8>(shared.dout(step), params.dout, row, head,
                                                                              params.rows);
        constexpr u32 kPieces = Traits::kRows / 4;
        const u64 statistics = static_cast<u64>(head) * params.row_tiles * abi::kRowTile + static_cast<u32>(row);
        if (thread < kPieces) {
            cp_async_16(shared.lse_address(step) + thread * 16, params.lse_log2 + statistics + thread * 4, 16);
        } else if (thread < 2 * kPieces) {
            const u32 piece = thread - kPieces;
            cp_async_16(shared.row_sums_address(step) + piece * 16, params.row_sums + statistics + piece * 4, 16);
        }
        cp_async_arrive(shared.full(step));
    }

private:
    /// Rows [row, row + kCount) of one head; those outside [0, limit) become zeros. A thread keeps to its column of a group that is
    /// permuted by itself: all other addresses are constants away.
    template <class Tile, u32 kCount, u32 kColumns>
    SAPWOOD_DEVICE static void copy(u32 to, const abi::Tensor& tensor, i32 row, u32 head, i32 limit) {
        constexpr u32 kGroup = kColumns % 8 == 0 ? 8 : 4, kDown = Traits::kThreads / kGroup;
        static_assert(kColumns % kGroup == 0 && kCount % kDown == 0);
        const u32 r = thread_id() / kGroup, column = thread_id() % kGroup;
        const u8* base = static_cast<const u8*>(tensor.data) + static_cast<i64>(head) * tensor.head_stride + column * 16;
        to += Tile::offset(r, column);
        SAPWOOD_UNROLL for (u32 i = 0; i < kCount; i += kDown) {
            SAPWOOD_UNROLL for (u32 c = 0; c < kColumns; c += kGroup) {
                copy_piece(to + i * Tile::kPitch + c * 16, base + c * 16, tensor.token_stride, row + static_cast<i32>(r + i),
                           limit);
            }
        }
    }
};

}  // namespace sapwood::kernel
