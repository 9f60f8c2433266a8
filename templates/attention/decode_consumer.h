// SPDX-License-Identifier: Apache-2.0
// The compute warps: each keeps the softmax state of 16 query rows in registers while the keys of its work item stream by. A warp
// looks only at chunks that some of its rows see, so siblings of one subtree walk root to leaf in one block without partial
// results.
#pragma once

#include "attention/decode_merge.h"
#include "attention/decode_producer.h"
#include "attention/softmax_state.h"

namespace sapwood::kernel {

/// What a compute warp needs of an abi::Chunk, in two registers.
struct ChunkView {
    u32 rows;  // row_begin in the low half, row_end in the high half
    u32 tokens;
    SAPWOOD_DEVICE u32 begin() const { return rows & 0xffff; }
    SAPWOOD_DEVICE u32 end() const { return rows >> 16; }
    SAPWOOD_DEVICE bool sees(u32 row) const { return row >= begin() && row < end(); }
};

template <class Traits>
struct DecodeConsumer {
    using Element = typename Traits::Element;
    static constexpr u32 kSteps = Traits::kHeadDim / 16;
    // Both chunks of a pair at once keep twice as many products in flight, where there are registers for their scores.
    static constexpr bool kPairs =
        Traits::kMoveRegisters || Traits::kHeadDimV < 128 || (Traits::kWarps == 4 && Traits::kHeadDimV < 256);

    const abi::DecodeParams& params;
    const DecodeShared<Traits>& shared;
    const typename Traits::Score score;
    const u32 lane;
    RingPosition<Traits::kStages> at;

    SoftmaxState<Traits::kHeadDimV> state;
    u32 query[Traits::kQueryInRegisters ? kSteps : 1][4];
    // Looked up when the item starts where there are registers to keep it, so that its end does not wait.
    static constexpr bool kTargetsEarly = Traits::kMoveRegisters;
    RowTargets<Traits> targets;
    u32 tiles = 0;
    static constexpr u32 kIdle = ~0u;  // a warp beyond row blocks * parts
    u32 row_block = 0, part = 0, parts = 1;

    SAPWOOD_DEVICE DecodeConsumer(const abi::DecodeParams& p, const DecodeShared<Traits>& s)
        : params(p), shared(s), score(p), lane(lane_id()) {}

    /// Every lane arrives for itself: what it has read is then ordered before the copy warps' next write by its own arrival. One
    /// arrival a warp behind a warp barrier is no faster (measured), and race checkers cannot follow it.
    SAPWOOD_DEVICE void release() {
        mbarrier_arrive(shared.ring.empty(at.stage));
        at.advance();
    }

    /// ldmatrix lane addresses: A fragments and V take row l%16, column l/16; K takes row l%8 + 8*(l/16), column (l/8)%2.
    SAPWOOD_DEVICE u32 a_address(u32 tile, u32 step) const { return tile + Traits::KTile::offset(lane % 16, step * 2 + lane / 16); }

    SAPWOOD_DEVICE u32 query_hold() const { return shared.address + Traits::kQueryHold + warp_id() * 16 * Traits::kHeadDim * 2; }

    SAPWOOD_DEVICE void begin_item() {
        const StageHeader* header = shared.header(at.stage);
        const abi::Item item = header->item;
        tiles = item.tiles;
        const RowBlocks<Traits> all(item.requests);
        parts = all.parts;
        const u32 warp = warp_id(), blocks = all.blocks == 0 ? 1 : all.blocks;
        row_block = warp % blocks;
        part = warp / blocks < parts ? warp / blocks : kIdle;
        if (lane == 0) shared.note(warp) = {item.request_begin, all.rows, header->kv_head, 0};
        if constexpr (kTargetsEarly) targets.find(params, item.request_begin, all.rows, row_block);
        const u32 tile = shared.stage(at.stage) + row_block * 16 * Traits::KTile::kPitch;
        if constexpr (Traits::kQueryInRegisters) {
            SAPWOOD_UNROLL for (u32 step = 0; step < kSteps; ++step) ldmatrix_x4(query[step], a_address(tile, step));
        } else {
            // Too many registers: keep the warp's 16 rows in shared memory and read a fragment a step.
            const u8* from = shared.base + (tile - shared.address);
            u8* to = shared.base + (query_hold() - shared.address);
            for (u32 i = lane; i < Traits::kHeadDim * 2; i += 32) {
                reinterpret_cast<U32x4*>(to)[i] = reinterpret_cast<const U32x4*>(from)[i];
            }
        }
        state.clear();
    }

    /// Soft-cap, then -inf for what a row does not see. Most chunks are whole and seen by all 16 rows: those skip the mask.
    template <u32 kCount>
    SAPWOOD_DEVICE void mask(f32 (&s)[kCount * 2][4], const ChunkView (&chunks)[kCount]) const {
        if constexpr (Traits::Score::kTransforms) {
            SAPWOOD_UNROLL for (u32 i = 0; i < kCount * 2; ++i) {
                SAPWOOD_UNROLL for (u32 j = 0; j < 4; ++j) s[i][j] = score.transform(s[i][j]);
            }
        }
        bool whole = true;
        SAPWOOD_UNROLL for (u32 c = 0; c < kCount; ++c) {
            whole = whole && chunks[c].tokens == abi::kChunkTokens && chunks[c].begin() <= row_block * 16 &&
                    chunks[c].end() >= row_block * 16 + 16;
        }
        if (whole) return;
        const u32 row0 = row_block * 16 + lane / 4, row1 = row0 + 8;
        SAPWOOD_UNROLL for (u32 c = 0; c < kCount; ++c) {
            // One compare an element: 0 tokens count for a row that sees nothing here.
            const u32 limit0 = chunks[c].sees(row0) ? chunks[c].tokens : 0, limit1 = chunks[c].sees(row1) ? chunks[c].tokens : 0;
            SAPWOOD_UNROLL for (u32 n = 0; n < 2; ++n) {
                SAPWOOD_UNROLL for (u32 j = 0; j < 2; ++j) {
                    const u32 token = n * 8 + lane % 4 * 2 + j;
                    if (token >= limit0) s[c * 2 + n][j] = -infinity();
                    if (token >= limit1) s[c * 2 + n][2 + j] = -infinity();
                }
            }
        }
    }

    /// kCount neighbouring chunks of one tile, all of their keys at once.
    template <u32 kCount>
    SAPWOOD_DEVICE void attend(u32 k_tile, u32 v_tile, const ChunkView (&chunks)[kCount]) {
        f32 s[kCount * 2][4] = {};
        // With Q in shared memory, four steps at a time: all of them unrolled would have every fragment in flight and spill.
        constexpr u32 kUnrolled = Traits::kQueryInRegisters ? kSteps : 4;
        SAPWOOD_NO_UNROLL for (u32 first = 0; first < kSteps; first += kUnrolled) {
            const RowAddresses<typename Traits::KTile> keys(k_tile + first * 32, lane % 8 + lane / 16 * 8, lane / 8 % 2);
            SAPWOOD_UNROLL for (u32 i = 0; i < kUnrolled; ++i) {
                u32 held[4];
                if constexpr (!Traits::kQueryInRegisters) ldmatrix_x4(held, a_address(query_hold(), first + i));
                const u32(&a)[4] = Traits::kQueryInRegisters ? query[Traits::kQueryInRegisters ? i : 0] : held;
                SAPWOOD_UNROLL for (u32 c = 0; c < kCount; ++c) {
                    u32 b[4];
                    ldmatrix_x4(b, keys.at(i, c * 16));
                    mma_16x8x16<Element>(s[c * 2], a, b[0], b[1]);
                    mma_16x8x16<Element>(s[c * 2 + 1], a, b[2], b[3]);
                }
            }
        }
        mask(s, chunks);

        f32 m0 = -infinity(), m1 = -infinity();
        SAPWOOD_UNROLL for (u32 i = 0; i < kCount * 2; ++i) {
            m0 = max_f32(m0, max_f32(s[i][0], s[i][1]));
            m1 = max_f32(m1, max_f32(s[i][2], s[i][3]));
        }
        const f32 factor = score.factor();
        state.raise(m0 * factor, m1 * factor);
        const f32 z0 = -state.finite(state.maximum[0]), z1 = -state.finite(state.maximum[1]);
        SAPWOOD_UNROLL for (u32 i = 0; i < kCount * 2; ++i) {
            s[i][0] = exp2_approx(fma_f32(s[i][0], factor, z0));
            s[i][1] = exp2_approx(fma_f32(s[i][1], factor, z0));
            s[i][2] = exp2_approx(fma_f32(s[i][2], factor, z1));
            s[i][3] = exp2_approx(fma_f32(s[i][3], factor, z1));
            state.sum[0] += s[i][0] + s[i][1];
            state.sum[1] += s[i][2] + s[i][3];
        }
        const RowAddresses<typename Traits::VTile> values(v_tile, lane % 16, lane / 16);
        SAPWOOD_UNROLL for (u32 c = 0; c < kCount; ++c) {
            // Two neighbouring accumulators, packed, are the A fragment of the next product.
            const u32 p[4] = {pack2<Element>(s[c * 2][0], s[c * 2][1]), pack2<Element>(s[c * 2][2], s[c * 2][3]),
                              pack2<Element>(s[c * 2 + 1][0], s[c * 2 + 1][1]), pack2<Element>(s[c * 2 + 1][2], s[c * 2 + 1][3])};
            SAPWOOD_UNROLL for (u32 d = 0; d < Traits::kHeadDimV / 16; ++d) {
                u32 b[4];
                ldmatrix_x4_trans(b, values.at(d, c * 16));
                mma_16x8x16<Element>(state.out[d * 2], p, b[0], b[1]);
                mma_16x8x16<Element>(state.out[d * 2 + 1], p, b[2], b[3]);
            }
        }
    }

    SAPWOOD_DEVICE bool sees(const ChunkView& chunk) const {
        return chunk.begin() < row_block * 16 + 16 && chunk.end() > row_block * 16 && chunk.begin() < chunk.end();
    }

    /// Pairs of chunks go round the warps that share a row block; `turn` counts the item's pairs.
    SAPWOOD_DEVICE void attend_tile(u32& turn) {
        const u32 k_stage = shared.stage(at.stage), v_stage = k_stage + Traits::kBlockKv * Traits::KTile::kPitch;
        for (u32 pair = 0; pair < Traits::kChunks / 2; ++pair) {
            const bool mine = turn == part;
            if (++turn >= parts) turn = 0;
            if (!mine) continue;
            const U32x4* words = reinterpret_cast<const U32x4*>(shared.chunks(at.stage) + pair * 2);
            const ChunkView chunks[2] = {{words[0].y, words[0].z}, {words[1].y, words[1].z}};
            const u32 k_tile = k_stage + pair * 32 * Traits::KTile::kPitch, v_tile = v_stage + pair * 32 * Traits::VTile::kPitch;
            const bool first = sees(chunks[0]), second = sees(chunks[1]);
            if (kPairs && first && second) {
                attend<2>(k_tile, v_tile, chunks);
                continue;
            }
            SAPWOOD_NO_UNROLL for (u32 c = 0; c < 2; ++c) {
                if (c == 0 ? !first : !second) continue;
                const ChunkView only[1] = {c == 0 ? chunks[0] : chunks[1]};
                attend<1>(k_tile + c * 16 * Traits::KTile::kPitch, v_tile + c * 16 * Traits::VTile::kPitch, only);
            }
        }
    }

    SAPWOOD_DEVICE void run() {
        u32 finished = 0;
        for (;; ++finished) {
            shared.ring.wait_full(at);
            if (shared.header(at.stage)->kind == static_cast<u32>(abi::StageKind::stop)) break;
            begin_item();
            release();
            u32 turn = 0;
            for (u32 tile = 0; tile < tiles; ++tile) {
                shared.ring.wait_full(at);
                attend_tile(turn);
                release();
            }
            state.reduce_sum();
            if (parts > 1) {
                shared.ring.wait_full(at);
                // The ring has ordered this already, by way of the copy warps; said directly it costs little and a race checker
                // follows it.
                named_sync(kComputeBarrier, Traits::kComputeThreads);
                add_parts<Traits>(shared, at.stage, state, row_block, part, parts);
                release();
            }
            if (part != 0) continue;
            warp_sync();  // lane 0 has written the note
            const ItemNote note = shared.note(warp_id());
            warp_sync();  // all lanes have read it before the next item's is written
            if constexpr (!kTargetsEarly) targets.find(params, note.request_begin, note.rows, row_block);
            write_rows<Traits>(params, targets, note.kv_head, state, row_block);
        }
        const StageHeader* last = shared.header(at.stage);
        merge_partials<Traits>(params, finished, last->items, last->merges);
    }
};

template <class Config>
SAPWOOD_DEVICE void decode(const abi::DecodeParams& params) {
    using Traits = DecodeTraits<Config>;
    const DecodeShared<Traits> shared;
    if (thread_id() == 0) {
        shared.ring.init(DecodeProducer<Traits>::kFullArrivals, Traits::kComputeThreads);
        // All blocks that will ever wait for each other are resident once all have said so, and the next kernel waits by itself.
        let_later_kernels_start();
    }
    const bool copies = warp_id() >= Traits::kWarps;
    DecodeProducer<Traits> producer(params, shared);
    if (copies) producer.look_up();  // travels while the barriers are made
    block_sync();
    if (copies) {
        if constexpr (Traits::kMoveRegisters) registers_release<Traits::kProducerRegisters>();
        producer.run();
    } else {
        if constexpr (Traits::kMoveRegisters) registers_take<Traits::kConsumerRegisters>();
        DecodeConsumer<Traits>(params, shared).run();
    }
}

}  // namespace sapwood::kernel
