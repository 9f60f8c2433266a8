// SPDX-License-Identifier: Apache-2.0
// What a copy warp does for an item: fills stages of the ring with its Q, then with its K and V tiles and their masks.
#pragma once

#include "attention/decode_traits.h"
#include "attention/decode_widening.h"

namespace sapwood::kernel {

/// Shared by both roles: rows are spread over blocks of a unit's rows; where there are fewer blocks than units, `parts` units share
/// a block and take turns over the keys. Not with the few long tiles that fit beside Q: each unit holds one while it waits for its
/// next, and the other's next has no stage to go to.
template <class Traits>
struct RowBlocks {
    static constexpr u32 kRows = Traits::kUnitWarps * 16;
    static constexpr u32 kUnits = Traits::kWarps / Traits::kUnitWarps;
    static_assert(kUnits <= 8);
    u32 rows, blocks, parts;
    SAPWOOD_DEVICE explicit RowBlocks(u32 requests)
        : rows(requests * Traits::kGroup),
          blocks(rows == 0 ? 1 : (rows + kRows - 1) / kRows),
          parts(Traits::kQueryShared ? 1 : part_of(kUnits)) {}
    /// unit / blocks, for up to 8 of each, by reciprocals in 64ths: divisions by what is not a constant take 200 cycles of an
    /// item's start.
    SAPWOOD_DEVICE u32 part_of(u32 unit) const {
        constexpr u64 kReciprocals = 0x080a0b0d10162040;  // of 8, 7, … 1, rounded up
        return unit * (static_cast<u32>(kReciprocals >> (blocks - 1) * 8) & 0xff) >> 6;
    }
};

template <class Traits>
struct DecodeCopies {
    using Chunks = typename Traits::template Products<Traits>::Chunks;
    template <class To, class Tile, u32 kDim>
    using Widening = typename Select<Traits::kWidens, WideningCopy<To, Tile, kDim>, NoWidening>::Type;
    using KeysWidened = Widening<typename Traits::Element, typename Traits::KTile, Traits::kHeadDim>;
    using ValuesWidened = Widening<typename Traits::KvElement::Weight, typename Traits::VTile, Traits::kHeadDimV>;
    static constexpr u32 kThreads = Traits::kProducers * 32;
    static constexpr u32 kTokens = Traits::kBlockKv / Traits::kProducers;  // of a tile, for each copy warp
    static constexpr u32 kOwnChunks = kTokens / abi::kChunkTokens;
    static constexpr u32 kRows = Traits::kBlockQ / Traits::kProducers;
    static constexpr u32 kRowGroups = (kRows + 31) / 32;
    // Tiles that a look-up (of the chunk, then of the page) travels ahead of its use. A spill costs more than what it hides: local
    // memory is read behind all copies that were sent before.
    static constexpr u32 kAhead = Traits::kFewRegisters || Traits::kWidens ? 1 : Traits::kQueryShared ? 2 : 3;
    static_assert(kTokens == 16 || kTokens == 32, "a copy warp looks up one token a lane");

    const typename Traits::Params& params;
    const DecodeShared<Traits>& shared;
    const u32 warp, lane;
    RingPosition<Traits::kStages> at, values_at;  // values_at: where they come apart
    abi::Item item{};
    // Of the item's head in K and V, the columns that this lane copies of a row; found anew for each tile where registers are few.
    static constexpr bool kKeepsHeads = !Traits::kFewRegisters && !Traits::kQueryShared && !Traits::kWidens;
    const u8 *k_columns = nullptr, *v_columns = nullptr;

    SAPWOOD_DEVICE DecodeCopies(const typename Traits::Params& p, const DecodeShared<Traits>& s)
        : params(p), shared(s), warp(warp_id() - Traits::kWarps), lane(lane_id()) {}

    SAPWOOD_DEVICE bool leader() const { return warp == 0 && lane == 0; }

    /// The stage's full barrier counts every copy thread twice: its copies have landed, and its header words are written.
    static constexpr u32 kFullArrivals = kThreads * 2;

    SAPWOOD_DEVICE void publish() { publish(shared.ring, at); }
    SAPWOOD_DEVICE static void publish(const Ring<Traits::kStages>& ring, RingPosition<Traits::kStages>& filled) {
        const u32 barrier = ring.full(filled.stage);
        cp_async_arrive(barrier);
        mbarrier_arrive(barrier);
        filled.advance();
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
        const u32 rows = item.requests * Traits::kGroup;
        const u8* head = static_cast<const u8*>(params.q) + static_cast<u64>(kv_head) * Traits::kGroup * params.q_head_stride;
        constexpr u32 kColumns = Traits::kHeadDim / 8;
        constexpr u32 kCount = (kRows < 32 ? kRows : 32) * kColumns;
        // Steps whose addresses are made side by side: one by one each takes 120 cycles, and nothing else can start before Q has.
        constexpr u32 kAtOnce = kCount % 128 == 0 && !Traits::kQueryShared ? 4 : kCount % 64 == 0 ? 2 : 1;
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
            SAPWOOD_NO_UNROLL for (u32 first = 0; first < kCount; first += kAtOnce * 32) {
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
    SAPWOOD_DEVICE void send_tile(u32 words, u32 found, u32 first_request, u32 kv_head) {
        const u32 own_row = row_of(words, found);
        [[maybe_unused]] KeysWidened keys;
        if constexpr (Traits::kWidens)
            keys.load(head_of(params.k, params.k_head_stride, kv_head), own_row, tokens_of(words, 0), params.k_token_stride);
        shared.ring.wait_empty(at);
        if (lane < kTokens && lane % 16 < 4) {
            u32* chunk = reinterpret_cast<u32*>(shared.chunks(at.stage) + warp * kOwnChunks + lane / 16);
            chunk[lane % 16] = words;
        }
        if constexpr (Traits::kMasksStaged) send_masks(words, first_request);
        if constexpr (Traits::kWidens) {
            ValuesWidened values;
            values.load(head_of(params.v, params.v_head_stride, kv_head), own_row, tokens_of(words, 0), params.v_token_stride);
            u8* stage = shared.base + at.stage * Traits::kStageBytes;
            keys.store(stage, warp * kTokens);
            values.store(stage + Traits::kKTileBytes, warp * kTokens);
            Chunks::stored();
            publish();
        } else if constexpr (Traits::kValuesApart) {
            send_chunks<TilePart::keys>(shared.ring.full(at.stage), words, own_row, kv_head);
            publish();
            shared.values.wait_empty(values_at);
            send_chunks<TilePart::values>(shared.values.full(values_at.stage), words, own_row, kv_head);
            publish(shared.values, values_at);
        } else {
            send_chunks<TilePart::all>(shared.ring.full(at.stage), words, own_row, kv_head);
            publish();
        }
    }
    /// This warp's chunks of K or V or both, into the stages at hand. Where they come apart copy warps have few registers, and
    /// rows that are not in a row are the exception: one way to copy them will do.
    template <TilePart kPart>
    SAPWOOD_DEVICE void send_chunks(u32 barrier, u32 words, u32 own_row, u32 kv_head) const {
        const u32 k_tile = shared.stage(at.stage) + Traits::KTile::row(warp * kTokens);
        const u32 v_tile =
            shared.value_tile(kPart == TilePart::all ? at.stage : values_at.stage) + Traits::VTile::row(warp * kTokens);
        SAPWOOD_UNROLL for (u32 c = 0; c < kOwnChunks; ++c) {
            const u32 tokens = tokens_of(words, c);
            // Padding: warps do not read it; a warpgroup multiplies whole tiles, and what lies there must not be NaN.
            if (!Traits::kWarpgroups && tokens == 0) continue;
            if (tokens == abi::kChunkTokens) {
                if (Chunks::template fetch<kPart>(params, barrier, k_tile, v_tile, c, own_row, kv_head)) continue;
                copy_chunk<kPart, !Traits::kValuesApart>(k_tile, v_tile, c, own_row, tokens, kv_head);
            } else {
                copy_chunk<kPart, false>(k_tile, v_tile, c, own_row, tokens, kv_head);
            }
        }
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
    SAPWOOD_DEVICE static const u8* head_of(const void* tensor, i64 stride, u32 kv_head) {
        return static_cast<const u8*>(tensor) + static_cast<u64>(kv_head) * static_cast<u64>(stride);
    }
    /// As one value: its terms, added to each row's offset one by one, are two instructions more a row.
    template <u32 kColumns>
    SAPWOOD_DEVICE const u8* columns_of(const void* tensor, i64 stride, u32 kv_head) const {
        return as_one_value(head_of(tensor, stride, kv_head) + (32 % kColumns == 0 ? lane % kColumns * 16 : 0));
    }
    SAPWOOD_DEVICE const u8* find_k_columns(u32 kv_head) const {
        return columns_of<Traits::kKColumns>(params.k, params.k_head_stride, kv_head);
    }
    SAPWOOD_DEVICE const u8* find_v_columns(u32 kv_head) const {
        return columns_of<Traits::kVColumns>(params.v, params.v_head_stride, kv_head);
    }
    template <TilePart kPart, bool kWhole>
    SAPWOOD_DEVICE void copy_chunk(u32 k_tile, u32 v_tile, u32 chunk, u32 own_row, u32 tokens, u32 kv_head) const {
        if constexpr (has_keys(kPart))
            copy_rows<typename Traits::KTile, Traits::kKColumns, kWhole>(
                k_tile, chunk, own_row, tokens, kKeepsHeads ? k_columns : find_k_columns(kv_head), params.k_token_stride);
        if constexpr (has_values(kPart))
            copy_rows<typename Traits::VTile, Traits::kVColumns, kWhole>(
                v_tile, chunk, own_row, tokens, kKeepsHeads ? v_columns : find_v_columns(kv_head), params.v_token_stride);
    }
    /// 16 rows from `columns` on (columns_of), 16 bytes a lane and step. Those from `tokens` on (kWhole: there are none) become
    /// zeros: their weight is 0, and 0 * NaN would not be.
    template <class Tile, u32 kColumns, bool kWhole>
    SAPWOOD_DEVICE void copy_rows(u32 stage, u32 chunk, u32 own_row, u32 tokens, const u8* columns, u32 token_stride) const {
        if constexpr (32 % kColumns == 0) {
            constexpr u32 kRowsAStep = 32 / kColumns, kPermuted = kColumns < 8 ? kColumns : 8;
            // The rows of one step have the keys of its first row, XOR the row within the step: one XOR with a constant.
            const u32 lane_column = (lane % kPermuted ^ Tile::key(lane / kColumns)) * 16;
            const u32 lane_to = stage + Tile::row(chunk * abi::kChunkTokens) + Tile::row(lane / kColumns) +
                                lane % kColumns / 8 * Tile::kGroupStride;
            const auto copy = [&](u32 first) {
                const u32 to = lane_to + Tile::row(first) + (lane_column ^ Tile::key(first) * 16);
                const u32 row = shfl(own_row, chunk * abi::kChunkTokens + first + lane / kColumns);
                copy_16(to, columns, row, kWhole || first + lane / kColumns < tokens, token_stride);
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
                copy_16(stage + Tile::offset(token, i % kColumns), columns + i % kColumns * 16, shfl(own_row, token),
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
};

}  // namespace sapwood::kernel
