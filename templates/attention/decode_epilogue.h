// SPDX-License-Identifier: Apache-2.0
// From softmax states to results: warps that shared rows add up, final rows go out, partial rows go to the workspace, and the block
// that arrives last for a request merges its parts. The merge reads every part in slot order, its own too, so that the result does
// not depend on which block came last.
#pragma once

#include "attention/decode_traits.h"
#include "attention/softmax_state.h"

namespace sapwood::kernel {

inline constexpr u32 kComputeBarrier = 1;

/// Sums the states of the `parts` warps of each row block into part 0, pairwise, through a stage of the ring.
template <class Traits>
SAPWOOD_DEVICE void add_parts(const DecodeShared<Traits>& shared, u32 stage, SoftmaxState<Traits::kHeadDimV>& state, u32 row_block,
                              u32 part, u32 parts) {
    constexpr u32 kFloats = Traits::kHeadDimV / 2;  // a lane's accumulators
    const u32 lane = lane_id();
    const u32 blocks = Traits::kWarps / parts;  // slots are part-major; blocks * parts <= kWarps
    for (u32 live = parts; live > 1;) {
        const u32 kept = (live + 1) / 2;
        const u32 slot = ((part >= kept ? part - kept : part) * blocks + row_block);
        f32* out = shared.scratch(stage) + slot * kFloats * 32;
        f32* stats = shared.scratch_stats() + slot * 32;
        if (part >= kept && part < live) {
            SAPWOOD_UNROLL for (u32 i = 0; i < kFloats; ++i) out[i * 32 + lane] = state.out[i / 4][i % 4];
            if (lane % 4 == 0) {
                SAPWOOD_UNROLL for (u32 h = 0; h < 2; ++h) {
                    stats[(lane / 4 + h * 8) * 2] = state.maximum[h];
                    stats[(lane / 4 + h * 8) * 2 + 1] = state.sum[h];
                }
            }
        }
        named_sync(kComputeBarrier, Traits::kComputeThreads);
        if (part < live - kept) {
            f32 factor[2], maximum[2];
            SAPWOOD_UNROLL for (u32 h = 0; h < 2; ++h) {
                const f32 other = stats[(lane / 4 + h * 8) * 2];
                maximum[h] = max_f32(state.maximum[h], other);
                factor[h] = exp2_approx(other - state.finite(maximum[h]));
            }
            state.rescale_to(maximum[0], maximum[1]);
            SAPWOOD_UNROLL for (u32 h = 0; h < 2; ++h) state.sum[h] += factor[h] * stats[(lane / 4 + h * 8) * 2 + 1];
            SAPWOOD_UNROLL for (u32 i = 0; i < kFloats; ++i) {
                state.out[i / 4][i % 4] = fma_f32(factor[i % 4 / 2], out[i * 32 + lane], state.out[i / 4][i % 4]);
            }
        }
        live = kept;
        if (live > 1) named_sync(kComputeBarrier, Traits::kComputeThreads);
    }
}

template <class Traits>
SAPWOOD_DEVICE abi::ItemRequest load_request(const abi::DecodeParams& params, u32 index) {
    const U32x4 bits = load_readonly_16(params.requests + index);
    return {static_cast<int>(bits.x), static_cast<int>(bits.y), static_cast<int>(bits.z), static_cast<int>(bits.w)};
}

template <class Traits>
SAPWOOD_DEVICE u8* out_row(const abi::DecodeParams& params, int request, u32 kv_head, u32 in_group) {
    return static_cast<u8*>(params.out) + static_cast<u64>(request) * static_cast<u64>(params.out_request_stride) +
           static_cast<u64>(kv_head * Traits::kGroup + in_group) * params.out_head_stride;
}

/// One 16-row block of a finished item: each row final or partial.
template <class Traits>
SAPWOOD_DEVICE void write_rows(const abi::DecodeParams& params, const abi::Item& item, u32 kv_head,
                               const SoftmaxState<Traits::kHeadDimV>& state, u32 row_block) {
    using Element = typename Traits::Element;
    const u32 lane = lane_id();
    SAPWOOD_UNROLL for (u32 h = 0; h < 2; ++h) {
        const u32 row = row_block * 16 + lane / 4 + h * 8;
        if (row >= item.requests * Traits::kGroup) continue;
        const u32 in_group = row % Traits::kGroup;
        const abi::ItemRequest entry = load_request<Traits>(params, item.request_begin + row / Traits::kGroup);
        const f32 inverse = state.inverse_sum(h);
        const f32 lse = state.lse(h);
        if (entry.slots == 1) {
            u8* out = out_row<Traits>(params, entry.request, kv_head, in_group) + lane % 4 * 4;
            SAPWOOD_UNROLL for (u32 i = 0; i < Traits::kHeadDimV / 8; ++i) {
                store_4(out + i * 16, pack2<Element>(state.out[i][h * 2] * inverse, state.out[i][h * 2 + 1] * inverse));
            }
            if (params.lse != nullptr && lane % 4 == 0) {
                const u64 heads = static_cast<u64>(params.kv_heads) * Traits::kGroup;
                store_f32(params.lse + static_cast<u64>(entry.request) * heads + kv_head * Traits::kGroup + in_group, lse);
            }
        } else if (entry.slots > 1) {  // 0: the request sees nothing of this item
            const u64 part = (static_cast<u64>(entry.slot) * params.kv_heads + kv_head) * Traits::kGroup + in_group;
            f32* out = params.partial_out + part * Traits::kHeadDimV + lane % 4 * 2;
            SAPWOOD_UNROLL for (u32 i = 0; i < Traits::kHeadDimV / 8; ++i) {
                store_f32x2(out + i * 8, state.out[i][h * 2] * inverse, state.out[i][h * 2 + 1] * inverse);
            }
            if (lane % 4 == 0) store_f32(params.partial_lse + part, lse);
        }
    }
}

/// Adds up the parts of one query row, a warp a row: weights exp(lse_i - max), an empty part has weight 0.
template <class Traits>
SAPWOOD_DEVICE void merge_row(const abi::DecodeParams& params, const abi::ItemRequest& entry, u32 kv_head, u32 in_group) {
    using Element = typename Traits::Element;
    constexpr u32 kVectors = (Traits::kHeadDimV / 4 + 31) / 32;
    const u32 lane = lane_id();
    const u64 stride = static_cast<u64>(params.kv_heads) * Traits::kGroup;
    const u64 first = (static_cast<u64>(entry.slot_begin) * params.kv_heads + kv_head) * Traits::kGroup + in_group;
    const u32 parts = static_cast<u32>(entry.slots);
    f32 out[kVectors][4] = {};
    f32 maximum = -infinity(), sum = 0;
    for (u32 begin = 0; begin < parts; begin += 32) {
        const bool mine = begin + lane < parts;
        const f32 lse = mine ? load_shared_by_blocks(params.partial_lse + first + (begin + lane) * stride) : -infinity();
        f32 peak = lse;
        SAPWOOD_UNROLL for (u32 mask = 16; mask > 0; mask /= 2) peak = max_f32(peak, shfl_xor(peak, mask));
        peak = max_f32(peak, maximum);
        const f32 base = peak == -infinity() ? 0.0f : peak;
        const f32 old = exp2_approx((maximum - base) * 1.4426950408889634f);
        const f32 weight = exp2_approx((lse - base) * 1.4426950408889634f);
        f32 total = weight;
        SAPWOOD_UNROLL for (u32 mask = 16; mask > 0; mask /= 2) total += shfl_xor(total, mask);
        sum = sum * old + total;
        maximum = peak;
        SAPWOOD_UNROLL for (u32 n = 0; n < kVectors; ++n) {
            SAPWOOD_UNROLL for (u32 j = 0; j < 4; ++j) out[n][j] *= old;
        }
        const u32 count = parts - begin < 32 ? parts - begin : 32;
        constexpr u32 kBatch = kVectors == 1 ? 8 : 4;  // loads in flight
        for (u32 i = 0; i < count; i += kBatch) {
            F32x4 x[kBatch][kVectors];
            SAPWOOD_UNROLL for (u32 b = 0; b < kBatch; ++b) {
                SAPWOOD_UNROLL for (u32 n = 0; n < kVectors; ++n) {
                    const u32 vector = n * 32 + lane;
                    x[b][n] = {0, 0, 0, 0};
                    if (i + b < count && vector < Traits::kHeadDimV / 4) {
                        x[b][n] = load_shared_by_blocks_16(params.partial_out +
                                                           (first + (begin + i + b) * stride) * Traits::kHeadDimV + vector * 4);
                    }
                }
            }
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
    const f32 inverse = sum > 0 ? 1.0f / sum : 0.0f;
    u8* to = out_row<Traits>(params, entry.request, kv_head, in_group);
    SAPWOOD_UNROLL for (u32 n = 0; n < kVectors; ++n) {
        const u32 vector = n * 32 + lane;
        if (vector < Traits::kHeadDimV / 4) {
            store_8(to + vector * 8, pack2<Element>(out[n][0] * inverse, out[n][1] * inverse),
                    pack2<Element>(out[n][2] * inverse, out[n][3] * inverse));
        }
    }
    if (params.lse != nullptr && lane == 0) {
        const f32 lse = sum > 0 ? maximum + log2_approx(sum) * 0.6931471805599453f : -infinity();
        store_f32(params.lse + static_cast<u64>(entry.request) * stride + kv_head * Traits::kGroup + in_group, lse);
    }
}

/// Ends an item: called by every compute warp; `owner` warps hold a row block's state.
template <class Traits>
SAPWOOD_DEVICE void finish_item(const abi::DecodeParams& params, const DecodeShared<Traits>& shared, const abi::Item& item, u32 kv_head,
                                const SoftmaxState<Traits::kHeadDimV>& state, u32 row_block, bool owner) {
    if (owner) write_rows<Traits>(params, item, kv_head, state, row_block);
    if (item.partial == 0) return;
    const u32 thread = thread_id(), warp = warp_id();
    named_sync(kComputeBarrier, Traits::kComputeThreads);  // the block's partial rows are written, and the flags' readers are done
    for (u32 i = thread; i < item.requests; i += Traits::kComputeThreads) {
        const abi::ItemRequest entry = load_request<Traits>(params, item.request_begin + i);
        bool last = false;
        if (entry.slots > 1) {
            const u32 limit = static_cast<u32>(entry.slots) - 1;
            u32* counter = params.arrivals + static_cast<u64>(entry.slot_begin) * params.kv_heads + kv_head;
            last = atomic_inc_acq_rel(counter, limit) == limit;  // wraps to 0: ready for the next launch
        }
        shared.flags()[i] = last;
    }
    named_sync(kComputeBarrier, Traits::kComputeThreads);
    for (u32 row = warp; row < item.requests * Traits::kGroup; row += Traits::kWarps) {
        const u32 index = row / Traits::kGroup;
        if (shared.flags()[index] == 0) continue;
        merge_row<Traits>(params, load_request<Traits>(params, item.request_begin + index), kv_head, row % Traits::kGroup);
    }
}

}  // namespace sapwood::kernel
