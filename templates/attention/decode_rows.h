// SPDX-License-Identifier: Apache-2.0
// What a compute warp does with the scores of its 16 query rows, whoever multiplied them: mask, running maximum, exponentials.
#pragma once

#include "attention/decode_operands.h"
#include "attention/weights.h"

namespace sapwood::kernel {

/// What a compute warp needs of an abi::Chunk, in two registers.
struct ChunkView {
    u32 rows;    // row_begin in the low half, row_end in the high half
    u32 tokens;  // with the flags of a mask, so that a masked chunk never looks whole
    SAPWOOD_DEVICE u32 begin() const { return rows & 0xffff; }
    SAPWOOD_DEVICE u32 end() const { return rows >> 16; }
    SAPWOOD_DEVICE bool sees(u32 row) const { return row >= begin() && row < end(); }
};

template <class Traits>
struct DecodeRows {
    using Operands = typename Select<Traits::kKvBytes == 1, ByteOperands<Traits>, HalfOperands<Traits>>::Type;
    static constexpr u32 kSteps = Traits::kHeadDim / 16;

    const abi::DecodeParams& params;
    const DecodeShared<Traits>& shared;
    typename Traits::Score score;
    const u32 lane;
    SoftmaxState<Traits::kHeadDimV> state;
    u32 query[Traits::kQueryInRegisters ? kSteps : 1][4];
    // Of the item: this warp's block of 16 rows, and its part among the `parts` units that share the rows; `parts` or more: of
    // none.
    u32 row_block = 0, part = 0, parts = 1;
    int request[2] = {};  // of this lane's two rows, if mask words are read from global memory

    SAPWOOD_DEVICE DecodeRows(const abi::DecodeParams& p, const DecodeShared<Traits>& s)
        : params(p), shared(s), score(p), lane(lane_id()) {}

    /// Every lane arrives for itself: what it has read is then ordered before the copy warps' next write by its own arrival. One
    /// arrival a warp behind a warp barrier is no faster (measured), and race checkers cannot follow it.
    SAPWOOD_DEVICE void release(u32 stage) const { mbarrier_arrive(shared.ring.empty(stage)); }

    SAPWOOD_DEVICE ChunkView chunk(u32 stage, u32 index) const {
        const U32x4 words = *reinterpret_cast<const U32x4*>(shared.chunks(stage) + index);
        return {words.y, words.z};
    }

    SAPWOOD_DEVICE u32 query_hold() const { return shared.address + Traits::kQueryHold + warp_id() * 16 * Traits::QTile::kPitch; }

    SAPWOOD_DEVICE void take_query(u32 stage) {
        const u32 tile = shared.stage(stage) + row_block * 16 * Traits::QTile::kPitch;
        if constexpr (Traits::kQueryInRegisters) {
            SAPWOOD_UNROLL for (u32 step = 0; step < kSteps; ++step) Operands::load_query(query[step], shared, tile, step, lane);
        } else {
            // Too many registers: keep the warp's 16 rows in shared memory and read a fragment a step.
            Operands::hold_query(shared, tile, query_hold(), lane);
        }
    }

    /// Soft-cap, where there is one.
    template <u32 kBlocks>
    SAPWOOD_DEVICE void transform(f32 (&s)[kBlocks][4]) const {
        if constexpr (Traits::Score::kTransforms) {
            SAPWOOD_UNROLL for (u32 i = 0; i < kBlocks; ++i) {
                SAPWOOD_UNROLL for (u32 j = 0; j < 4; ++j) s[i][j] = score.transform(s[i][j]);
            }
        }
    }

    /// -inf for what a row does not see. Most chunks are whole and seen by all 16 rows: those skip the mask. `index`: of the chunks
    /// in their tile.
    template <u32 kCount>
    SAPWOOD_DEVICE void mask_unless_whole(f32 (&s)[kCount * 2][4], const ChunkView (&chunks)[kCount], u32 stage,
                                          const u32 (&index)[kCount]) const {
        const u32 first = row_block * 16, end = first + 16;
        bool whole = true;
        SAPWOOD_UNROLL for (u32 c = 0; c < kCount; ++c) {
            whole = whole && chunks[c].tokens == abi::kChunkTokens && chunks[c].begin() <= first && chunks[c].end() >= end;
        }
        if (!whole) mask(s, chunks, stage, index);
    }
    template <u32 kCount>
    SAPWOOD_DEVICE void mask(f32 (&s)[kCount * 2][4], const ChunkView (&chunks)[kCount], u32 stage,
                             const u32 (&index)[kCount]) const {
        const u32 row0 = row_block * 16 + lane / 4, row1 = row0 + 8;
        SAPWOOD_UNROLL for (u32 c = 0; c < kCount; ++c) {
            if constexpr (Traits::kMask) {
                const u32 seen[2] = {seen_by(chunks[c], row0, 0, stage, index[c]), seen_by(chunks[c], row1, 1, stage, index[c])};
                SAPWOOD_UNROLL for (u32 n = 0; n < 2; ++n) {
                    SAPWOOD_UNROLL for (u32 j = 0; j < 2; ++j) {
                        const u32 bit = 1u << (n * 8 + lane % 4 * 2 + j);
                        if ((seen[0] & bit) == 0) s[c * 2 + n][j] = -infinity();
                        if ((seen[1] & bit) == 0) s[c * 2 + n][2 + j] = -infinity();
                    }
                }
                continue;
            }
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

    /// The same of a tile whose chunks are most likely all full or empty: then a compare a row and chunk will do.
    template <u32 kCount>
    SAPWOOD_DEVICE void mask_tile(f32 (&s)[kCount * 2][4], const ChunkView (&chunks)[kCount], u32 stage,
                                  const u32 (&index)[kCount]) const {
        bool full = !Traits::kMask;
        SAPWOOD_UNROLL for (u32 c = 0; c < kCount; ++c) full = full && chunks[c].tokens % abi::kChunkTokens == 0;
        if (!full) return mask(s, chunks, stage, index);
        const u32 row0 = row_block * 16 + lane / 4;
        SAPWOOD_UNROLL for (u32 c = 0; c < kCount; ++c) {
            const bool sees[2] = {chunks[c].sees(row0), chunks[c].sees(row0 + 8)};
            SAPWOOD_UNROLL for (u32 j = 0; j < 8; ++j) {
                if (!sees[j / 2 % 2]) s[c * 2 + j / 4][j % 4] = -infinity();
            }
        }
    }

    /// Bit t: the row, the lane's `half`-th, sees token t of the chunk.
    SAPWOOD_DEVICE u32 seen_by(const ChunkView& chunk, u32 row, u32 half, u32 stage, u32 index) const {
        if (!chunk.sees(row)) return 0;
        u32 seen = ~0u;
        if (chunk.tokens & abi::kMasked) {
            const u32 column = chunk.tokens >> abi::kMaskColumnShift;
            if constexpr (Traits::kMasksStaged) {
                seen = shared.masks(stage, index)[row / Traits::kGroup];
            } else {
                seen = load_readonly_4(params.masks + static_cast<u64>(request[half]) * params.mask_words + column / 2);
            }
            seen >>= column % 2 * abi::kChunkTokens;
        }
        return seen & ((1u << (chunk.tokens & abi::kTokensMask)) - 1);
    }

    /// Masked scores to weights, into the running maximum and sum. True if the output is still to be multiplied by `rescale`.
    template <u32 kBlocks>
    SAPWOOD_DEVICE bool weigh(f32 (&s)[kBlocks][4], f32 (&rescale)[2]) {
        // Maxima and sums as trees: in a row each would wait for the one before.
        constexpr u32 kWays = kBlocks < 8 ? kBlocks : 8;
        f32 m0[kWays], m1[kWays];
        SAPWOOD_UNROLL for (u32 i = 0; i < kWays; ++i) {
            m0[i] = max_f32(s[i][0], s[i][1]);
            m1[i] = max_f32(s[i][2], s[i][3]);
        }
        SAPWOOD_UNROLL for (u32 i = kWays; i < kBlocks; ++i) {
            m0[i % kWays] = max_f32(m0[i % kWays], max_f32(s[i][0], s[i][1]));
            m1[i % kWays] = max_f32(m1[i % kWays], max_f32(s[i][2], s[i][3]));
        }
        SAPWOOD_UNROLL for (u32 half = kWays / 2; half > 0; half /= 2) {
            SAPWOOD_UNROLL for (u32 i = 0; i < half; ++i) {
                m0[i] = max_f32(m0[i], m0[i + half]);
                m1[i] = max_f32(m1[i], m1[i + half]);
            }
        }
        const f32 factor = score.factor();
        const bool raised = state.raise(m0[0], m1[0], factor, rescale);
        state.exponentials(s, factor);
        return raised;
    }
};

}  // namespace sapwood::kernel
