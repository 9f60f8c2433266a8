// SPDX-License-Identifier: Apache-2.0
// The copy warps: draw work items, and stream Q, then K and V tiles, through the ring, running ahead of the compute warps across
// item boundaries as far as the ring allows.
#pragma once

#include "attention/decode_traits.h"

namespace sapwood::kernel {

/// Shared by both roles: rows are spread over blocks of a unit's rows; where there are fewer blocks than units, `parts` units share
/// a block and take turns over the keys.
template <class Traits>
struct RowBlocks {
    static constexpr u32 kRows = Traits::kUnitWarps * 16;
    static constexpr u32 kUnits = Traits::kWarps / Traits::kUnitWarps;
    u32 rows, blocks, parts;
    SAPWOOD_DEVICE explicit RowBlocks(u32 requests)
        : rows(requests * Traits::kGroup), blocks((rows + kRows - 1) / kRows), parts(kUnits / (blocks == 0 ? 1 : blocks)) {}
};

/// The last block to come here finds that all have waited, and leaves the counter as it was found: no memset between launches.
/// Relaxed is enough: a block's own atomics have returned before it comes.
SAPWOOD_DEVICE void leave(const abi::DecodeParams& params) {
    if (atomic_inc_relaxed(&params.counters->left, grid_size() - 1) == grid_size() - 1) store_4(&params.counters->finished, 0);
}

template <class Traits>
struct DecodeProducer {
    using Chunks = typename Traits::template Products<Traits>::Chunks;
    static constexpr u32 kThreads = Traits::kProducers * 32;
    static constexpr u32 kTokens = Traits::kBlockKv / Traits::kProducers;  // of a tile, for each copy warp
    static constexpr u32 kOwnChunks = kTokens / abi::kChunkTokens;
    static constexpr u32 kRows = Traits::kBlockQ / Traits::kProducers;
    static constexpr u32 kRowGroups = (kRows + 31) / 32;
    // Tiles that a look-up (of the chunk, then of the page) travels ahead of its use.
    static constexpr u32 kAhead = 3;
    static constexpr u32 kCopyBarrier = 2;
    static constexpr u32 kMergeBarrier = 7;  // compute warps and the first copy warp: all items of the launch are written
    static_assert(kTokens == 16 || kTokens == 32, "a copy warp looks up one token a lane");

    const typename Traits::Params& params;
    const DecodeShared<Traits>& shared;
    const u32 warp, lane;
    RingPosition<Traits::kStages> at;
    U32x4 header{};
    abi::Item item{};

    SAPWOOD_DEVICE DecodeProducer(const typename Traits::Params& p, const DecodeShared<Traits>& s)
        : params(p), shared(s), warp(warp_id() - Traits::kWarps), lane(lane_id()) {}

    /// The stage's full barrier counts every copy thread twice: its copies have landed, and its header words are written.
    static constexpr u32 kFullArrivals = kThreads * 2;

    SAPWOOD_DEVICE void publish() {
        const u32 barrier = shared.ring.full(at.stage);
        cp_async_arrive(barrier);
        mbarrier_arrive(barrier);
        at.advance();
    }
    SAPWOOD_DEVICE void write_header(abi::StageKind kind, u32 kv_head = 0) {
        if (warp != 0 || lane != 0) return;
        StageHeader* words = shared.header(at.stage);
        words->kind = static_cast<u32>(kind);
        words->kv_head = kv_head;
        words->item = item;
    }

    /// Request of the query row that this lane looks up for its warp, one for each 32 rows.
    struct QueryRows {
        u32 request[kRowGroups];
    };
    SAPWOOD_DEVICE u32 request_at(u32 index) const { return load_readonly_4(&params.requests[item.request_begin + index].request); }
    SAPWOOD_DEVICE QueryRows find_query() const {
        QueryRows found;
        SAPWOOD_UNROLL for (u32 g = 0; g < kRowGroups; ++g) {
            const u32 row = warp * kRows + g * 32 + lane;
            found.request[g] = 0;
            if (row < item.requests * Traits::kGroup) found.request[g] = request_at(row / Traits::kGroup);
        }
        return found;
    }
    /// Of a KV head: bits of the factors of its keys and values.
    struct Scales {
        u32 k = 0x3f800000, v = 0x3f800000;
    };
    SAPWOOD_DEVICE Scales find_scales(u32 kv_head) const {
        Scales found;
        if (leader() && params.k_scale != nullptr) found.k = load_readonly_4(params.k_scale + kv_head);
        if (leader() && params.v_scale != nullptr) found.v = load_readonly_4(params.v_scale + kv_head);
        return found;
    }
    SAPWOOD_DEVICE void send_query(u32 kv_head, const QueryRows& found, Scales scales) {
        const RowBlocks<Traits> blocks(item.requests);
        const u32 rows = blocks.rows, end = blocks.blocks * RowBlocks<Traits>::kRows;  // of those that are read
        const u8* head = static_cast<const u8*>(params.q) + static_cast<u64>(kv_head) * Traits::kGroup * params.q_head_stride;
        constexpr u32 kColumns = Traits::kHeadDim / 8;
        constexpr u32 kCount = (kRows < 32 ? kRows : 32) * kColumns;
        // Steps whose addresses are made side by side: one by one each takes 120 cycles, and nothing else can start before Q has.
        constexpr u32 kAtOnce = kCount % 128 == 0 ? 4 : kCount % 64 == 0 ? 2 : 1;
        shared.ring.wait_empty(at);
        write_header(abi::StageKind::query, kv_head);
        if constexpr (Traits::KvElement::kScaled) {
            if (leader()) {
                shared.header(at.stage)->items = scales.k;
                shared.header(at.stage)->merges = scales.v;
            }
        }
        SAPWOOD_UNROLL for (u32 g = 0; g < kRowGroups; ++g) {
            const u32 begin = warp * kRows + g * 32;
            if (begin >= rows) break;
            const u32 count = min_u32(kCount, (end - begin) * kColumns);
            SAPWOOD_NO_UNROLL for (u32 first = 0; first < count; first += kAtOnce * 32) {
                SAPWOOD_UNROLL for (u32 i = first; i < first + kAtOnce * 32; i += 32) {
                    const u32 local = (i + lane) / kColumns, column = (i + lane) % kColumns;
                    const u32 row = begin + local;
                    const u64 from = static_cast<u64>(shfl(found.request[g], local)) * static_cast<u64>(params.q_request_stride) +
                                     static_cast<u64>(row % Traits::kGroup) * params.q_head_stride;
                    // Rows past the end are zeros: their scores must not be NaN, or a shared maximum vote would see them.
                    cp_async_16(shared.stage(at.stage) + Traits::QTile::offset(row, column), head + from + column * 16,
                                row < rows ? 16 : 0);
                }
            }
        }
        publish();
    }

    /// Lane l holds word l % 4 of the abi::Chunk that token l of this warp's part of a tile lies in. Never as whole structs: the
    /// warp's chunk would be uniform, go to uniform registers, and moving it there waits for the load.
    SAPWOOD_DEVICE u32 load_chunk(u32 tile) const {
        if (tile >= item.tiles) return 0;
        const u32 index = item.chunk_begin + tile * Traits::kChunks + warp * kOwnChunks + (lane % kTokens) / abi::kChunkTokens;
        return load_readonly_4(reinterpret_cast<const u32*>(params.chunks + index) + lane % 4);
    }
    SAPWOOD_DEVICE u32 position_of(u32 words) const { return shfl(words, lane & 16); }
    SAPWOOD_DEVICE static u32 count(u32 tokens) { return Traits::kMask ? tokens & abi::kTokensMask : tokens; }
    SAPWOOD_DEVICE u32 tokens_of(u32 words, u32 chunk) const { return count(shfl(words, chunk * 16 + 2)); }
    /// What the row of the lane's token needs from memory: its page, or all of the row if the token is gathered. Not touched
    /// before row_of: arithmetic on it here would wait for the load, once a tile.
    SAPWOOD_DEVICE u32 look_up_row(u32 words) const {
        const u32 token = lane % abi::kChunkTokens, position = position_of(words) + token;
        const u32 tokens = shfl(words, (lane & 16) + 2);
        if (token >= count(tokens)) return 0;  // nothing is there to look up
        if constexpr (Traits::kMask) {
            if (tokens & abi::kGathered) {
                const u32 listed = load_readonly_4(params.gather + position);
                return Traits::KvSource::row(Traits::KvSource::look_up(params.page_table, listed), listed);
            }
        }
        return Traits::KvSource::look_up(params.page_table, position);
    }
    SAPWOOD_DEVICE u32 row_of(u32 words, u32 found) const {
        u32 position = 0;
        if constexpr (Traits::KvSource::kNeedsPosition) position = position_of(words) + lane % abi::kChunkTokens;
        const u32 row = Traits::KvSource::row(found, position);
        if constexpr (Traits::kMask) return shfl(words, (lane & 16) + 2) & abi::kGathered ? found : row;
        return row;
    }

    /// `found`: by look_up_row, of the same words.
    SAPWOOD_DEVICE void send_tile(u32 words, u32 found, u32 first_request, u32 kv_head, const u8* k, const u8* v) {
        const u32 own_row = row_of(words, found);
        shared.ring.wait_empty(at);
        if (lane < kTokens && lane % 16 < 4) {
            u32* chunk = reinterpret_cast<u32*>(shared.chunks(at.stage) + warp * kOwnChunks + lane / 16);
            chunk[lane % 16] = words;
        }
        write_header(abi::StageKind::tile);
        if constexpr (Traits::kMasksStaged) send_masks(words, first_request);
        const u32 k_stage = shared.stage(at.stage) + warp * kTokens * Traits::KTile::kPitch;
        const u32 v_stage = shared.stage(at.stage) + Traits::kKTileBytes + warp * kTokens * Traits::VTile::kPitch;
        SAPWOOD_UNROLL for (u32 c = 0; c < kOwnChunks; ++c) {
            const u32 tokens = tokens_of(words, c);
            // Padding: warps do not read it; a warpgroup multiplies whole tiles, and what lies there must not be NaN.
            if (!Traits::kWarpgroups && tokens == 0) continue;
            if (tokens == abi::kChunkTokens) {
                if (Chunks::fetch(params, shared.ring.full(at.stage), k_stage, v_stage, c, own_row, kv_head)) continue;
                copy_chunk<true>(k_stage, v_stage, c, own_row, tokens, k, v);
            } else {
                copy_chunk<false>(k_stage, v_stage, c, own_row, tokens, k, v);
            }
        }
        publish();
    }
    /// The mask words of the item's requests that see some of a chunk. `first`: the item's first request.
    SAPWOOD_DEVICE void send_masks(u32 words, u32 first) {
        SAPWOOD_UNROLL for (u32 c = 0; c < kOwnChunks; ++c) {
            const u32 tokens = shfl(words, c * 16 + 2), rows = shfl(words, c * 16 + 1);
            if ((tokens & abi::kMasked) == 0) continue;
            const unsigned* column = params.masks + (tokens >> abi::kMaskColumnShift) / 2;
            const u32 to = shared_address(shared.masks(at.stage, warp * kOwnChunks + c));
            for (u32 i = (rows & 0xffff) / Traits::kGroup + lane; i < (rows >> 16) / Traits::kGroup; i += 32) {
                const u32 request = item.in_a_row ? first + i : request_at(i);
                cp_async_4(to + i * 4, column + static_cast<u64>(request) * params.mask_words);
            }
        }
    }
    template <bool kWhole>
    SAPWOOD_DEVICE void copy_chunk(u32 k_stage, u32 v_stage, u32 chunk, u32 own_row, u32 tokens, const u8* k, const u8* v) {
        copy_rows<typename Traits::KTile, Traits::kKColumns, kWhole>(k_stage, chunk, own_row, tokens, k, params.k_token_stride);
        copy_rows<typename Traits::VTile, Traits::kVColumns, kWhole>(v_stage, chunk, own_row, tokens, v, params.v_token_stride);
    }
    /// 16 rows, 16 bytes a lane and step. Those from `tokens` on (kWhole: there are none) become zeros: their weight is 0, and 0 *
    /// NaN would not be.
    template <class Tile, u32 kColumns, bool kWhole>
    SAPWOOD_DEVICE void copy_rows(u32 stage, u32 chunk, u32 own_row, u32 tokens, const u8* base, u32 token_stride) {
        if constexpr (32 % kColumns == 0) {
            constexpr u32 kRowsAStep = 32 / kColumns, kPermuted = kColumns < 8 ? kColumns : 8;
            // The rows of one step have the keys of its first row, XOR the row within the step: one XOR with a constant.
            const u32 lane_column = (lane % kPermuted ^ Tile::key(lane / kColumns)) * 16;
            const u32 lane_to =
                stage + (chunk * abi::kChunkTokens + lane / kColumns) * Tile::kPitch + lane % kColumns / 8 * Tile::kGroupStride;
            const auto copy = [&](u32 first) {
                const u32 to = lane_to + first * Tile::kPitch + (lane_column ^ Tile::key(first) * 16);
                const u32 row = shfl(own_row, chunk * abi::kChunkTokens + first + lane / kColumns);
                copy_16(to, base + lane % kColumns * 16, row, kWhole || first + lane / kColumns < tokens, token_stride);
            };
            if constexpr (kWhole) {
                SAPWOOD_UNROLL for (u32 first = 0; first < abi::kChunkTokens; first += kRowsAStep) copy(first);
            } else {  // once a node: not worth all of its length, but a node may be all that a short item has
                constexpr u32 kAtOnce = kRowsAStep * 4 <= abi::kChunkTokens ? kRowsAStep * 4 : abi::kChunkTokens;
                SAPWOOD_NO_UNROLL for (u32 some = 0; some < abi::kChunkTokens; some += kAtOnce) {
                    SAPWOOD_UNROLL for (u32 first = some; first < some + kAtOnce; first += kRowsAStep) copy(first);
                }
            }
        } else {
            SAPWOOD_NO_UNROLL for (u32 i = lane; i < abi::kChunkTokens * kColumns; i += 32) {
                const u32 token = chunk * abi::kChunkTokens + i / kColumns;
                copy_16(stage + Tile::offset(token, i % kColumns), base + i % kColumns * 16, shfl(own_row, token),
                        kWhole || i / kColumns < tokens, token_stride);
            }
        }
    }
    SAPWOOD_DEVICE static void copy_16(u32 to, const u8* from, u32 row, bool token, u32 token_stride) {
        cp_async_16(to, from + static_cast<u64>(token ? row : 0) * token_stride, token ? 16 : 0);
    }

    SAPWOOD_DEVICE void send_empty(abi::StageKind kind, u32 items, u32 merges) {
        shared.ring.wait_empty(at);
        write_header(kind);
        if (leader()) {
            shared.header(at.stage)->items = items;
            shared.header(at.stage)->merges = merges;
        }
        publish();
    }

    /// What the work list says of an item's beginning: nothing that a kernel before this one could have written.
    struct Beginning {
        u32 chunk[2 * kAhead];
        QueryRows query;
        u32 first_request;  // of a kernel that copies masks
    };
    SAPWOOD_DEVICE Beginning find_beginning() const {
        Beginning found;
        SAPWOOD_UNROLL for (u32 i = 0; i < 2 * kAhead; ++i) found.chunk[i] = load_chunk(i);
        found.query = find_query();
        found.first_request = Traits::kMasksStaged ? request_at(0) : 0;
        return found;
    }

    SAPWOOD_DEVICE void send_item(u32 kv_head, const Beginning& beginning) {
        // Two chains of dependent look-ups, chunk then page and request then row, in flight together; registers as a queue, shifted
        // once a tile, because a ring would index them at run time.
        u32 chunk[2 * kAhead];
        u32 found[kAhead];
        Scales scales;
        if constexpr (Traits::KvElement::kScaled) scales = find_scales(kv_head);
        SAPWOOD_UNROLL for (u32 i = 0; i < 2 * kAhead; ++i) chunk[i] = beginning.chunk[i];
        SAPWOOD_UNROLL for (u32 i = 0; i < kAhead; ++i) found[i] = look_up_row(chunk[i]);
        send_query(kv_head, beginning.query, scales);
        const u8* k = static_cast<const u8*>(params.k) + static_cast<u64>(kv_head) * static_cast<u64>(params.k_head_stride);
        const u8* v = static_cast<const u8*>(params.v) + static_cast<u64>(kv_head) * static_cast<u64>(params.v_head_stride);
        for (u32 tile = 0; tile < item.tiles; ++tile) {
            const u32 after = load_chunk(tile + 2 * kAhead);
            const u32 found_after = look_up_row(chunk[kAhead]);
            send_tile(chunk[0], found[0], beginning.first_request, kv_head, k, v);
            SAPWOOD_UNROLL for (u32 i = 0; i + 1 < 2 * kAhead; ++i) chunk[i] = chunk[i + 1];
            SAPWOOD_UNROLL for (u32 i = 0; i + 1 < kAhead; ++i) found[i] = found[i + 1];
            chunk[2 * kAhead - 1] = after;
            found[kAhead - 1] = found_after;
        }
        if (RowBlocks<Traits>(item.requests).parts > 1) send_empty(abi::StageKind::scratch, 0, 0);
    }

    SAPWOOD_DEVICE abi::Item load_item(u32 index) const {
        const U32x4 bits = load_readonly_16(params.items + index);
        return {bits.x, bits.y, bits.z, static_cast<u16>(bits.w), static_cast<u16>(Traits::kMask ? bits.w >> 16 : 0)};
    }

    SAPWOOD_DEVICE bool leader() const { return warp == 0 && lane == 0; }

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
        item = load_item(block_id() / params.kv_heads < params.item_capacity ? block_id() / params.kv_heads : 0);
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
            if (ticket < tickets) item = load_item(ticket / params.kv_heads);
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
            send_item(ticket % params.kv_heads, beginning);
            if (leader() && merges != 0) {
                wait_for_room(first);
                drawn = draw(base, limit);
                if (drawn >= tickets) let_later_kernels_start();
            }
            ticket = share(turn, drawn);
            if (ticket < tickets) {
                item = load_item(ticket / params.kv_heads);
                beginning = find_beginning();
            }
        }
        send_empty(abi::StageKind::stop, tickets, merges);
        // The block's part in putting the other counter back is done here, off the compute warps' path.
        if (merges != 0 && warp == 0) {
            named_sync(kMergeBarrier, Traits::kComputeThreads + 32);
            if (lane == 0) leave(params);
        }
    }
    /// Until the item that begins at `first` has been started and the next stage is free. A block that drew again at once would take
    /// what is meant for one that is only just about to start: twice the time of an item.
    SAPWOOD_DEVICE void wait_for_room(const RingPosition<Traits::kStages>& first) {
        if (item.tiles + 2 <= Traits::kStages) mbarrier_wait(shared.ring.empty(first.stage), first.parity);
        shared.ring.wait_empty(at);
    }
    SAPWOOD_DEVICE u32 draw(u32 base, u32 limit) const { return base + atomic_inc_relaxed(&params.counters->ticket, limit); }
};

}  // namespace sapwood::kernel
