// SPDX-License-Identifier: Apache-2.0
// Adding up partial results at the end of the launch. Blocks that run out of work wait until every item is written, then share the
// rows of all merges evenly: a block that merged alone whatever it happened to finish last would read megabytes by itself. Waiting
// is safe because items are drawn, never assigned: what is waited for is in the hands of blocks that run. The parts of a row are
// read in slot order, so that the result does not depend on which block did what when.
#pragma once

#include "attention/decode_epilogue.h"
#include "attention/decode_producer.h"
#include "attention/merge_weights.h"

namespace sapwood::kernel {

/// A query row with several parts, ready to be read: nothing is left to compute when the wait for the parts is over.
struct MergeRow {
    const u8* out;        // this lane's columns of the first part
    const f32* exponent;  // of the first part
    u32 parts;
    int request;
    u32 head;  // of all query heads
};

/// Adds up the parts of query rows, a warp two rows at a time, or one: weights 2^(exponent_i - max), an empty part has weight 0.
/// One piece of code for both, and a short one: it is run once or twice a launch, and fetching its instructions is much of its
/// time.
template <class Traits>
struct Merger {
    using Element = typename Traits::Element;
    static constexpr u32 kVectors = (Traits::kHeadDimV / 4 + 31) / 32;
    static constexpr u32 kHalf = kVectors == 1 && !Traits::kFewRegisters ? 8 : 4;  // parts that half of the loads in flight bring

    const abi::DecodeParams& params;
    const u32 rows;  // of all merges
    const u32 lane = lane_id();

    SAPWOOD_DEVICE u32 stride() const { return params.kv_heads * Traits::kGroup; }  // in rows, from a part to the next

    /// The list is constant: this does not wait for the others' results.
    SAPWOOD_DEVICE MergeRow find(u32 row) const {
        if (row >= rows) return {nullptr, nullptr, 0, 0, 0};
        const u32 merge = row / stride(), head = row - merge * stride();
        const U32x4 words = load_readonly_16(params.merges + merge);  // request, slot_begin, slots
        const u64 first = static_cast<u64>(words.y) * stride() + head;
        return {partial_row<Traits>(params, first) + lane * 8, params.partial_exponent + first, words.z, static_cast<int>(words.x),
                head};
    }

    SAPWOOD_DEVICE void write(const MergeRow& row, const f32 (&sums)[kVectors][4], f32 maximum, f32 sum) const {
        const RowEnd end(maximum, sum);
        const u32 kv_head = row.head / Traits::kGroup, in_group = row.head % Traits::kGroup;
        u8* to = out_row<Traits>(params, row.request, kv_head, in_group);
        SAPWOOD_UNROLL for (u32 n = 0; n < kVectors; ++n) {
            const u32 vector = n * 32 + lane;
            if (vector < Traits::kHeadDimV / 4) {
                store_8(to + vector * 8, pack2<Element>(sums[n][0] * end.inverse, sums[n][1] * end.inverse),
                        pack2<Element>(sums[n][2] * end.inverse, sums[n][3] * end.inverse));
            }
        }
        if (lane == 0) write_lse<Traits>(params, row.request, kv_head, in_group, end);
    }

    /// `two`: both rows, kHalf parts of each at a time; else the first, twice as many at a time.
    SAPWOOD_DEVICE void merge(const MergeRow (&row)[2], bool two) {
        U32x2 x[2][kHalf][kVectors];
        f32 out[2][kVectors][4] = {};
        MergeWeights<2 * kHalf> weights;
        const u32 parts[2] = {row[0].parts, two ? row[1].parts : row[0].parts};
        const u8* rows_of[2] = {row[0].out, two ? row[1].out : row[0].out};
        // The half whose part this lane looks after, and that half's.
        const bool second = lane / kHalf % 2 == 1;
        const u32 its_parts = second ? parts[1] : parts[0];
        const f32* exponents = second && two ? row[1].exponent : row[0].exponent;
        const u32 most = parts[0] > parts[1] ? parts[0] : parts[1], bytes = stride() * Traits::kHeadDimV * 2;
        for (u32 begin = 0; begin < most; begin += two ? kHalf : 2 * kHalf) {
            const u32 first[2] = {begin, two ? begin : begin + kHalf};
            const bool both = first[1] < parts[1];  // or the second half has nothing to bring
            // Where there is no further part the last one is read again, and weighs nothing: cheaper than to ask.
            const u32 own = (second ? first[1] : first[0]) + lane % kHalf;
            const f32 read = load_shared_by_blocks(exponents + static_cast<u64>(stride()) * min_u32(own, its_parts - 1));
            // Before the weights are known: one trip to L2 instead of two.
            SAPWOOD_UNROLL for (u32 h = 0; h < 2; ++h) {
                if (h == 1 && !both) continue;
                SAPWOOD_UNROLL for (u32 b = 0; b < kHalf; ++b) {
                    const u8* from = rows_of[h] + static_cast<u64>(bytes) * min_u32(first[h] + b, parts[h] - 1);
                    SAPWOOD_UNROLL for (u32 n = 0; n < kVectors; ++n) {
                        if ((n + 1) * 128 <= Traits::kHeadDimV || n * 32 + lane < Traits::kHeadDimV / 4)
                            x[h][b][n] = load_shared_by_blocks_8(from + n * 256);
                    }
                }
            }
            f32 old;
            const f32 weight = weights.step(own < its_parts ? read : -infinity(), 1, old, two);
            SAPWOOD_UNROLL for (u32 h = 0; h < 2; ++h) {
                const f32 factor = bits_f32(shfl(f32_bits(old), h * kHalf));
                SAPWOOD_UNROLL for (u32 n = 0; n < kVectors; ++n) {
                    SAPWOOD_UNROLL for (u32 j = 0; j < 4; ++j) out[h][n][j] *= factor;
                }
                if (h == 1 && !both) continue;
                SAPWOOD_UNROLL for (u32 b = 0; b < kHalf; ++b) {
                    const f32 w = bits_f32(shfl(f32_bits(weight), h * kHalf + b));
                    SAPWOOD_UNROLL for (u32 n = 0; n < kVectors; ++n) {
                        f32 part[4];
                        unpack2<Element>(x[h][b][n].x, part[0], part[1]);
                        unpack2<Element>(x[h][b][n].y, part[2], part[3]);
                        SAPWOOD_UNROLL for (u32 j = 0; j < 4; ++j) out[h][n][j] = fma_f32(w, part[j], out[h][n][j]);
                    }
                }
            }
        }
        if (!two) {
            SAPWOOD_UNROLL for (u32 n = 0; n < kVectors; ++n) {
                SAPWOOD_UNROLL for (u32 j = 0; j < 4; ++j) out[0][n][j] += out[1][n][j];
            }
        }
        SAPWOOD_UNROLL for (u32 h = 0; h < 2; ++h) {
            const f32 maximum = bits_f32(shfl(f32_bits(weights.maximum), h * kHalf));
            const f32 sum = bits_f32(shfl(f32_bits(weights.sum), h * kHalf));
            if (h == 0 || two) write(row[h], out[h], maximum, sum);
        }
    }
};

/// Called by every compute warp of a block that has drawn its last ticket; `finished` of the launch's `items` are its own.
template <class Traits>
SAPWOOD_DEVICE void merge_partials(const abi::DecodeParams& params, u32 finished, u32 items, u32 merges) {
    if (merges == 0) return;
    const u32 thread = thread_id();
    Merger<Traits> merger{params, merges * params.kv_heads * Traits::kGroup};
    const u32 step = grid_size() * Traits::kWarps;
    u32 row = block_id() * Traits::kWarps + thread / 32;
    MergeRow next[2] = {merger.find(row), merger.find(row + step)};
    named_sync(kComputeBarrier, Traits::kComputeThreads);  // the block's partial rows are written
    if (thread == 0) {
        atomic_add_release(&params.counters->finished, finished);
        while (load_acquire(&params.counters->finished) < items) {}
    }
    named_sync(kComputeBarrier, Traits::kComputeThreads);
    // The last block to come here finds that all have waited, and leaves the counter as it was found: no memset between launches.
    // Its answer is looked at when the rows are done. Relaxed is enough: a block's own reads have returned before it comes.
    u32 before = 0;
    if (thread == 0) before = atomic_inc_relaxed(&params.counters->left, grid_size() - 1);
    while (row < merger.rows) {
        const bool two = row + step < merger.rows;
        merger.merge(next, two);
        row += two ? 2 * step : step;
        next[0] = merger.find(row);
        next[1] = merger.find(row + step);
    }
    if (thread == 0 && before == grid_size() - 1) store_4(&params.counters->finished, 0);
}

}  // namespace sapwood::kernel
