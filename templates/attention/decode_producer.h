// SPDX-License-Identifier: Apache-2.0
// The copy warps: draw work items, and stream Q, then K and V tiles, through the ring, running ahead of the compute warps across item
// boundaries as far as the ring allows.
#pragma once

#include "attention/decode_traits.h"

namespace sapwood::kernel {

/// Shared by both roles: rows are spread over row blocks of 16; where there are fewer row blocks than warps, `parts` warps share a
/// row block and take turns over the keys.
template <class Traits>
struct RowBlocks {
    u32 rows, blocks, parts;
    SAPWOOD_DEVICE explicit RowBlocks(u32 requests)
        : rows(requests * Traits::kGroup), blocks((rows + 15) / 16), parts(Traits::kWarps / (blocks == 0 ? 1 : blocks)) {}
};

template <class Traits>
struct DecodeProducer {
    static constexpr u32 kThreads = Traits::kProducers * 32;
    static constexpr u32 kTokens = Traits::kBlockKv / Traits::kProducers;  // of a tile, for each copy warp
    static constexpr u32 kOwnChunks = kTokens / abi::kChunkTokens;
    static constexpr u32 kRows = Traits::kBlockQ / Traits::kProducers;
    static constexpr u32 kNoRow = ~0u;
    static_assert(kTokens == 16 || kTokens == 32, "a copy warp looks up one token a lane");

    const abi::DecodeParams& params;
    const DecodeShared<Traits>& shared;
    const u32 warp, lane;
    RingPosition<Traits::kStages> at;

    SAPWOOD_DEVICE DecodeProducer(const abi::DecodeParams& p, const DecodeShared<Traits>& s)
        : params(p), shared(s), warp(warp_id() - Traits::kWarps), lane(lane_id()) {}

    /// The stage's full barrier counts every copy thread's landed copies and one plain arrival a copy warp for the header words.
    static constexpr u32 kFullArrivals = kThreads + Traits::kProducers;

    SAPWOOD_DEVICE void publish() {
        const u32 barrier = shared.ring.full(at.stage);
        cp_async_arrive(barrier);
        warp_sync();
        if (lane == 0) mbarrier_arrive(barrier);
        at.advance();
    }
    SAPWOOD_DEVICE void write_header(abi::StageKind kind, u32 kv_head, const abi::Item& item) {
        if (warp != 0 || lane != 0) return;
        StageHeader* header = shared.header(at.stage);
        header->kind = static_cast<u32>(kind);
        header->kv_head = kv_head;
        header->item = item;
    }

    SAPWOOD_DEVICE void send_query(const abi::Item& item, u32 kv_head) {
        const u32 rows = item.requests * Traits::kGroup;
        const u8* head = static_cast<const u8*>(params.q) + static_cast<u64>(kv_head) * Traits::kGroup * params.q_head_stride;
        shared.ring.wait_empty(at);
        write_header(abi::StageKind::query, kv_head, item);
        SAPWOOD_UNROLL for (u32 first = 0; first < kRows; first += 32) {
            const u32 begin = warp * kRows + first;
            if (begin >= rows) break;
            const u32 own = begin + lane;
            u64 offset = 0;
            if (own < rows) {
                const u32 index = item.request_begin + own / Traits::kGroup;
                const u32 request = load_readonly_4(&params.requests[index].request);
                offset = static_cast<u64>(request) * static_cast<u64>(params.q_request_stride) +
                         static_cast<u64>(own % Traits::kGroup) * params.q_head_stride;
            }
            constexpr u32 kColumns = Traits::kHeadDim / 8;
            constexpr u32 kCount = (kRows < 32 ? kRows : 32) * kColumns;
            SAPWOOD_UNROLL for (u32 i = 0; i < kCount; i += 32) {
                const u32 local = (i + lane) / kColumns, column = (i + lane) % kColumns;
                const u64 from = static_cast<u64>(shfl(static_cast<u32>(offset >> 32), local)) << 32 |
                                 shfl(static_cast<u32>(offset), local);
                const u32 row = begin + local;
                // Rows past the end are zeros: their scores must not be NaN, or a shared maximum vote would see them.
                cp_async_16(shared.stage(at.stage) + Traits::KTile::offset(row, column), head + from + column * 16,
                            row < rows ? 16 : 0);
            }
        }
        publish();
    }

    /// The chunk that this lane's token lies in.
    SAPWOOD_DEVICE abi::Chunk load_chunk(const abi::Item& item, u32 tile) const {
        abi::Chunk chunk{};
        if (tile < item.tiles) {
            const u32 index = item.chunk_begin + tile * Traits::kChunks + warp * kOwnChunks + (lane % kTokens) / abi::kChunkTokens;
            const U32x4 bits = load_readonly_16(params.chunks + index);
            chunk.position = bits.x;
            chunk.row_begin = static_cast<u16>(bits.y);
            chunk.row_end = static_cast<u16>(bits.y >> 16);
            chunk.tokens = static_cast<u16>(bits.z);
        }
        return chunk;
    }
    SAPWOOD_DEVICE u32 find_row(const abi::Chunk& chunk) const {
        const u32 token = lane % abi::kChunkTokens;
        return token < chunk.tokens ? Traits::KvSource::row(params.page_table, chunk.position + token) : kNoRow;
    }

    SAPWOOD_DEVICE void send_tile(const abi::Chunk& chunk, u32 own_row, const u8* k, const u8* v) {
        shared.ring.wait_empty(at);
        if (lane < kTokens && lane % abi::kChunkTokens == 0) {
            shared.chunks(at.stage)[warp * kOwnChunks + lane / abi::kChunkTokens] = chunk;
        }
        write_header(abi::StageKind::tile, 0, abi::Item{});
        const u32 k_stage = shared.stage(at.stage) + warp * kTokens * Traits::KTile::kPitch;
        const u32 v_stage = shared.stage(at.stage) + Traits::kBlockKv * Traits::KTile::kPitch + warp * kTokens * Traits::VTile::kPitch;
        SAPWOOD_UNROLL for (u32 c = 0; c < kOwnChunks; ++c) {
            if (shfl(chunk.tokens, c * abi::kChunkTokens) == 0) continue;  // padding: nobody reads it
            copy_rows<typename Traits::KTile, Traits::kHeadDim / 8>(k_stage, c, own_row, k, params.k_token_stride);
            copy_rows<typename Traits::VTile, Traits::kHeadDimV / 8>(v_stage, c, own_row, v, params.v_token_stride);
        }
        publish();
    }
    template <class Tile, u32 kColumns>
    SAPWOOD_DEVICE void copy_rows(u32 stage, u32 chunk, u32 own_row, const u8* base, u32 token_stride) {
        SAPWOOD_UNROLL for (u32 i = 0; i < abi::kChunkTokens * kColumns; i += 32) {
            const u32 token = chunk * abi::kChunkTokens + (i + lane) / kColumns, column = (i + lane) % kColumns;
            const u32 row = shfl(own_row, token);
            const u64 offset = row == kNoRow ? 0 : static_cast<u64>(row) * token_stride;
            cp_async_16(stage + Tile::offset(token, column), base + offset + column * 16, row == kNoRow ? 0 : 16);
        }
    }

    SAPWOOD_DEVICE void send_empty(abi::StageKind kind) {
        shared.ring.wait_empty(at);
        write_header(kind, 0, abi::Item{});
        publish();
    }

    SAPWOOD_DEVICE void send_item(const abi::Item& item, u32 kv_head) {
        abi::Chunk chunk = load_chunk(item, 0), next = load_chunk(item, 1);
        u32 row = find_row(chunk);
        send_query(item, kv_head);
        const u8* k = static_cast<const u8*>(params.k) + static_cast<u64>(kv_head) * static_cast<u64>(params.k_head_stride);
        const u8* v = static_cast<const u8*>(params.v) + static_cast<u64>(kv_head) * static_cast<u64>(params.v_head_stride);
        for (u32 tile = 0; tile < item.tiles; ++tile) {
            // Two look-ups deep: the descriptor of tile + 2 and the page of tile + 1 travel while tile is copied.
            const abi::Chunk after = load_chunk(item, tile + 2);
            const u32 next_row = find_row(next);
            send_tile(chunk, row, k, v);
            chunk = next;
            row = next_row;
            next = after;
        }
        if (RowBlocks<Traits>(item.requests).parts > 1) send_empty(abi::StageKind::scratch);
    }

    SAPWOOD_DEVICE abi::Item load_item(u32 index) const {
        const U32x4 bits = load_readonly_16(params.items + index);
        return {bits.x, bits.y, bits.z, static_cast<u16>(bits.w), static_cast<u16>(bits.w >> 16)};
    }

    SAPWOOD_DEVICE void run() {
        const bool leader = warp == 0 && lane == 0;
        u32 ticket = block_id();
        const u32 first = ticket / params.kv_heads;
        abi::Item item = load_item(first < params.item_capacity ? first : 0);
        const u32 tickets = load_readonly_4(&params.header->items) * params.kv_heads;
        for (u32 turn = 0; ticket < tickets; ++turn) {
            u32 drawn = 0;
            if (leader) drawn = grid_size() + atomic_add_relaxed(params.ticket, 1);
            send_item(item, ticket % params.kv_heads);
            // Two mailboxes in turn: the barrier of the next draw separates a mailbox's readers from its next writer.
            if (leader) shared.mailbox()[turn % 2] = drawn;
            named_sync(2, kThreads);
            ticket = shared.mailbox()[turn % 2];
            if (ticket < tickets) item = load_item(ticket / params.kv_heads);
        }
        send_empty(abi::StageKind::stop);
        // The last block to finish drawing leaves the counters as it found them: no memset between launches.
        if (leader && atomic_inc_acq_rel(params.ticket + 1, grid_size() - 1) == grid_size() - 1) store_4(params.ticket, 0);
    }
};

}  // namespace sapwood::kernel
