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

/// Adds up the parts of one query row, a warp a row: weights 2^(exponent_i - max), an empty part has weight 0.
template <class Traits>
SAPWOOD_DEVICE void merge_row(const abi::DecodeParams& params, const abi::Merge& entry, u32 kv_head, u32 in_group) {
    using Element = typename Traits::Element;
    constexpr u32 kVectors = (Traits::kHeadDimV / 4 + 31) / 32;
    const u32 lane = lane_id();
    const u64 stride = static_cast<u64>(params.kv_heads) * Traits::kGroup;
    const u64 first = (static_cast<u64>(entry.slot_begin) * params.kv_heads + kv_head) * Traits::kGroup + in_group;
    const u32 parts = static_cast<u32>(entry.slots);
    f32 out[kVectors][4] = {};
    MergeWeights<32> weights;
    constexpr u32 kBatch = kVectors == 1 ? 16 : 8;  // parts whose loads are in flight together
    F32x4 x[kBatch][kVectors];
    const auto load = [&](u32 part) {
        SAPWOOD_UNROLL for (u32 b = 0; b < kBatch; ++b) {
            SAPWOOD_UNROLL for (u32 n = 0; n < kVectors; ++n) {
                const u32 vector = n * 32 + lane;
                x[b][n] = {0, 0, 0, 0};
                if (part + b < parts && vector < Traits::kHeadDimV / 4) {
                    x[b][n] = load_shared_by_blocks_16(params.partial_out + (first + (part + b) * stride) * Traits::kHeadDimV +
                                                       vector * 4);
                }
            }
        }
    };
    for (u32 begin = 0; begin < parts; begin += 32) {
        const f32 exponent =
            begin + lane < parts ? load_shared_by_blocks(params.partial_exponent + first + (begin + lane) * stride) : -infinity();
        load(begin);  // before the weights are known: one trip to L2 instead of two
        f32 old;
        const f32 weight = weights.step(exponent, 1, old);
        SAPWOOD_UNROLL for (u32 n = 0; n < kVectors; ++n) { SAPWOOD_UNROLL for (u32 j = 0; j < 4; ++j) out[n][j] *= old; }
        const u32 count = parts - begin < 32 ? parts - begin : 32;
        for (u32 i = 0; i < count; i += kBatch) {
            if (i > 0) load(begin + i);
            SAPWOOD_UNROLL for (u32 b = 0; b < kBatch; ++b) {
                const f32 w = bits_f32(shfl(f32_bits(weight), (i + b) % 32));
                SAPWOOD_UNROLL for (u32 n = 0; n < kVectors; ++n) {
                    const f32 scaled = i + b < count ? w : 0.0f;
                    out[n][0] = fma_f32(scaled, x[b][n].x, out[n][0]);
                    out[n][1] = fma_f32(scaled, x[b][n].y, out[n][1]);
                    out[n][2] = fma_f32(scaled, x[b][n].z, out[n][2]);
                    out[n][3] = fma_f32(scaled, x[b][n].w, out[n][3]);
                }
            }
        }
    }
    const RowEnd end(weights.maximum, weights.sum);
    u8* to = out_row<Traits>(params, entry.request, kv_head, in_group);
    SAPWOOD_UNROLL for (u32 n = 0; n < kVectors; ++n) {
        const u32 vector = n * 32 + lane;
        if (vector < Traits::kHeadDimV / 4) {
            store_8(to + vector * 8, pack2<Element>(out[n][0] * end.inverse, out[n][1] * end.inverse),
                    pack2<Element>(out[n][2] * end.inverse, out[n][3] * end.inverse));
        }
    }
    if (lane == 0) write_lse<Traits>(params, entry.request, kv_head, in_group, end);
}

/// Called by every compute warp of a block that has drawn its last ticket; `finished` of the launch's `items` are its own.
template <class Traits>
SAPWOOD_DEVICE void merge_partials(const abi::DecodeParams& params, u32 finished, u32 items, u32 merges) {
    if (merges == 0) return;
    const u32 thread = thread_id();
    const u32 rows = merges * params.kv_heads * Traits::kGroup;
    const auto find = [&](u32 row) {  // the list is constant: the first look-up does not wait for the others' results
        U32x4 words = {0, 0, 0, 0};
        if (row < rows) words = load_readonly_16(params.merges + row / Traits::kGroup / params.kv_heads);
        return abi::Merge{static_cast<int>(words.x), static_cast<int>(words.y), static_cast<int>(words.z), 0};
    };
    u32 row = block_id() * Traits::kWarps + thread / 32;
    abi::Merge entry = find(row);
    named_sync(kComputeBarrier, Traits::kComputeThreads);  // the block's partial rows are written
    if (thread == 0) {
        atomic_add_release(&params.counters->finished, finished);
        while (load_acquire(&params.counters->finished) < items) {}
        leave(params);
    }
    named_sync(kComputeBarrier, Traits::kComputeThreads);
    while (row < rows) {
        merge_row<Traits>(params, entry, row / Traits::kGroup % params.kv_heads, row % Traits::kGroup);
        row += grid_size() * Traits::kWarps;
        entry = find(row);
    }
}

}  // namespace sapwood::kernel
