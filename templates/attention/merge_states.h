// SPDX-License-Identifier: Apache-2.0
// Merging partial results (out, lse) of the same queries over disjoint keys: weights exp(lse - max), then one weighted sum.
//
// Memory-bound: a row and head costs parts * (head_dim * part bytes + 4) + head_dim * out bytes + 4, each byte once, so the floor
// is their sum / 3.0 TB/s on an H100 (sapwood bench-merge prints it). A few FLOPs a byte are free; what has to be right is how much
// is on its way at a time. Sub-warps of kLanes take a row and head, each lane its 16-byte columns of every part. The loads of
// kBatch parts are issued together, ahead of the logarithms, so that a row of few parts makes one trip to memory. Rows of 2 to 4
// parts have few loads to issue and want many warps (kLoads 4, registers for 40 warps an SM); few rows of many parts want deep
// batches (16).
#pragma once

#include "attention/merge_weights.h"
#include "isa/isa.h"
#include "merge_abi.h"

namespace sapwood::kernel {

template <class Config>
struct MergeTraits : Config {
    static constexpr u32 kPartBytes = sizeof(typename Config::Part), kOutBytes = sizeof(typename Config::Out);
    static constexpr u32 kPerVector = 16 / kPartBytes;
    static constexpr u32 kVectors = Config::kHeadDim / kPerVector;
    static constexpr u32 kLanes = abi::merge_lanes(Config::kHeadDim, kPartBytes);
    static constexpr u32 kEach = (kVectors + kLanes - 1) / kLanes;  // vectors a lane
    static constexpr u32 kMost = Config::kSeparate ? abi::kMergeTensors : kLanes;
    static constexpr u32 kBatch = abi::merge_batch(Config::kLoads / kEach, kMost);  // parts whose loads are in flight together
    static constexpr u32 kRows = abi::kMergeThreads / kLanes;                       // of a block
    static constexpr u32 kBlocks = Config::kLoads <= 4 && kEach == 1 ? 10 : 1;      // an SM; 10: 48 registers a thread
};

/// The values of 16 bytes.
template <class Part>
SAPWOOD_DEVICE void widen(const U32x4& x, f32 (&to)[16 / sizeof(Part)]) {
    if constexpr (sizeof(Part) == 4) {
        to[0] = bits_f32(x.x), to[1] = bits_f32(x.y), to[2] = bits_f32(x.z), to[3] = bits_f32(x.w);
    } else {
        unpack2<Part>(x.x, to[0], to[1]);
        unpack2<Part>(x.y, to[2], to[3]);
        unpack2<Part>(x.z, to[4], to[5]);
        unpack2<Part>(x.w, to[6], to[7]);
    }
}

template <class Out, u32 kCount>
SAPWOOD_DEVICE void store_row_part(u8* to, const f32 (&v)[kCount]) {
    if constexpr (sizeof(Out) == 4) {
        SAPWOOD_UNROLL for (u32 i = 0; i < kCount; i += 4)
            store_16(to + i * 4, f32_bits(v[i]), f32_bits(v[i + 1]), f32_bits(v[i + 2]), f32_bits(v[i + 3]));
    } else if constexpr (kCount == 8) {
        store_16(to, pack2<Out>(v[0], v[1]), pack2<Out>(v[2], v[3]), pack2<Out>(v[4], v[5]), pack2<Out>(v[6], v[7]));
    } else {
        store_8(to, pack2<Out>(v[0], v[1]), pack2<Out>(v[2], v[3]));
    }
}

struct MergeRow {
    u32 batch, row, head;
    SAPWOOD_DEVICE u64 offset(const abi::MergeStrides& stride) const {
        return static_cast<u64>(batch) * stride.batch + static_cast<u64>(row) * stride.row + static_cast<u64>(head) * stride.head;
    }
    SAPWOOD_DEVICE u64 value_offset(const abi::MergeStrides& stride) const { return offset(stride) * 16; }  // bytes
};

/// Where the parts of one row and head lie.
template <bool kSeparate>
struct MergeSource {
    const abi::MergeParams& params;
    MergeRow at;
    const u8* out;  // of part 0; stacked alone
    const f32* lse;

    SAPWOOD_DEVICE MergeSource(const abi::MergeParams& given, const MergeRow& row, u32 first) : params(given), at(row) {
        if constexpr (!kSeparate) {
            out = value_of(0) + static_cast<u64>(first) * params.part_stride * 16;
            lse = logarithm_of(0) + static_cast<u64>(first) * params.lse_part_stride;
        }
    }
    SAPWOOD_DEVICE const u8* out_of(u32 part) const {
        if constexpr (kSeparate) return value_of(part);
        return out + static_cast<u64>(part) * params.part_stride * 16;
    }
    SAPWOOD_DEVICE const f32* lse_of(u32 part) const {
        if constexpr (kSeparate) return logarithm_of(part);
        return lse + static_cast<u64>(part) * params.lse_part_stride;
    }

private:
    SAPWOOD_DEVICE const u8* value_of(u32 tensor) const {
        const abi::MergePart& its = params.parts[tensor];
        return static_cast<const u8*>(its.out) + at.value_offset(its.out_stride);
    }
    SAPWOOD_DEVICE const f32* logarithm_of(u32 tensor) const {
        const abi::MergePart& its = params.parts[tensor];
        return its.lse + at.offset(its.lse_stride);
    }
};

template <class Config>
SAPWOOD_DEVICE void merge_states(const abi::MergeParams& params) {
    using Traits = MergeTraits<Config>;
    constexpr u32 kLanes = Traits::kLanes, kEach = Traits::kEach, kBatch = Traits::kBatch, kPerVector = Traits::kPerVector;
    let_later_kernels_start();
    wait_for_earlier_kernels();
    const u32 lane = lane_id() % kLanes, first_lane = lane_id() - lane;
    const u32 index = block_id() * Traits::kRows + thread_id() / kLanes;
    const bool live = index < params.row_heads;
    const u32 inside = live ? index : 0;
    const u32 row = abi::merge_divide(inside, params.by_heads), batch = abi::merge_divide(row, params.by_rows_per_batch);
    const MergeRow at = {batch, row - batch * params.rows_per_batch, inside - row * params.heads};
    u32 first = 0, parts = live ? params.count : 0;
    if (!Config::kSeparate && params.indptr != nullptr && live) {
        const i32 begin = static_cast<i32>(load_readonly_4(params.indptr + row));
        const i32 end = static_cast<i32>(load_readonly_4(params.indptr + row + 1));
        first = static_cast<u32>(begin);
        parts = end > begin ? static_cast<u32>(end - begin) : 0;
    }
    const MergeSource<Config::kSeparate> source(params, at, first);

    U32x4 x[kBatch][kEach];
    const auto load = [&](u32 begin) {
        SAPWOOD_UNROLL for (u32 b = 0; b < kBatch; ++b) {
            const u8* from = begin + b < parts ? source.out_of(begin + b) : nullptr;
            SAPWOOD_UNROLL for (u32 n = 0; n < kEach; ++n) {
                const u32 vector = n * kLanes + lane;
                x[b][n] = {0, 0, 0, 0};
                if (from != nullptr && vector < Traits::kVectors) x[b][n] = load_once_16(from + vector * 16);
            }
        }
    };
    MergeWeights<kLanes> weights;
    f32 out[kEach][kPerVector] = {};
    // Rows of one warp may differ in parts: it goes on until the longest is done, since shuffles need all of its lanes.
    for (u32 begin = 0; warp_any(begin < parts); begin += kLanes) {
        f32 lse = -infinity();
        if (begin + lane < parts) lse = load_f32(source.lse_of(begin + lane));
        load(begin);
        if (lse == infinity()) lse = -infinity();  // FlashAttention's mark for a row that saw nothing
        f32 old;
        const f32 weight = weights.step(lse, params.to_log2, old);
        SAPWOOD_UNROLL for (u32 n = 0; n < kEach; ++n) { SAPWOOD_UNROLL for (u32 j = 0; j < kPerVector; ++j) out[n][j] *= old; }
        for (u32 i = 0; i < kLanes; i += kBatch) {
            if (i > 0) {
                if (!warp_any(begin + i < parts)) break;
                load(begin + i);
            }
            SAPWOOD_UNROLL for (u32 b = 0; b < kBatch; ++b) {
                const f32 w = bits_f32(shfl(f32_bits(weight), first_lane + i + b));
                if (w == 0) continue;  // what an empty part holds may never have been written: 0 * NaN is NaN
                SAPWOOD_UNROLL for (u32 n = 0; n < kEach; ++n) {
                    f32 values[kPerVector];
                    widen<typename Config::Part>(x[b][n], values);
                    SAPWOOD_UNROLL for (u32 j = 0; j < kPerVector; ++j) out[n][j] = fma_f32(w, values[j], out[n][j]);
                }
            }
        }
    }
    if (!live) return;
    // Everything of this row has been read, by the lane that writes it or before a shuffle: out and lse may be part 0's memory.
    const bool empty = weights.sum == 0;
    const f32 inverse = empty ? 0.0f : reciprocal(weights.sum);
    u8* to = static_cast<u8*>(params.out) + at.value_offset(params.out_stride);
    SAPWOOD_UNROLL for (u32 n = 0; n < kEach; ++n) {
        const u32 vector = n * kLanes + lane;
        if (vector >= Traits::kVectors) continue;
        SAPWOOD_UNROLL for (u32 j = 0; j < kPerVector; ++j) out[n][j] *= inverse;
        store_row_part<typename Config::Out>(to + vector * kPerVector * Traits::kOutBytes, out[n]);
    }
    if (lane == 0 && params.lse != nullptr) {
        // In the callers' unit from the maximum on: one part alone comes out to the bit.
        store_f32(params.lse + at.offset(params.lse_stride),
                  empty ? -infinity() : weights.maximum + log2_approx(weights.sum) * params.from_log2);
    }
}

}  // namespace sapwood::kernel
