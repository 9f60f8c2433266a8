// SPDX-License-Identifier: Apache-2.0
// The end of a work item: warps that shared rows add up, final rows go straight out, partial rows go to the workspace.
#pragma once

#include "attention/decode_traits.h"
#include "attention/softmax_state.h"

namespace sapwood::kernel {

inline constexpr u32 kComputeBarrier = 1;

/// Sums the states of the `parts` warps of each row block into part 0, pairwise, through a stage of the ring.
template <class Traits>
SAPWOOD_DEVICE void add_parts(const DecodeShared<Traits>& shared, u32 stage, SoftmaxState<Traits::kHeadDimV>& state, u32 row_block,
                              u32 part, u32 parts) {
    constexpr u32 kVectors = Traits::kHeadDimV / 8;  // a lane's accumulators, in fours
    const u32 lane = lane_id();
    const u32 blocks = Traits::kWarps / parts;  // slots are part-major; blocks * parts <= kWarps
    for (u32 live = parts; live > 1;) {
        const u32 kept = (live + 1) / 2;
        const u32 slot = ((part >= kept ? part - kept : part) * blocks + row_block);
        F32x4* out = reinterpret_cast<F32x4*>(shared.scratch(stage)) + slot * kVectors * 32 + lane;
        f32* stats = shared.scratch_stats(stage) + slot * 32;
        if (part >= kept && part < live) {
            SAPWOOD_UNROLL for (u32 i = 0; i < kVectors; ++i) {
                out[i * 32] = {state.out[i][0], state.out[i][1], state.out[i][2], state.out[i][3]};
            }
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
                factor[h] = exp2_approx(other - maximum[h]);
            }
            state.rescale_to(maximum[0], maximum[1]);
            SAPWOOD_UNROLL for (u32 h = 0; h < 2; ++h) state.sum[h] += factor[h] * stats[(lane / 4 + h * 8) * 2 + 1];
            SAPWOOD_UNROLL for (u32 i = 0; i < kVectors; ++i) {
                const F32x4 x = out[i * 32];
                state.out[i][0] = fma_f32(factor[0], x.x, state.out[i][0]);
                state.out[i][1] = fma_f32(factor[0], x.y, state.out[i][1]);
                state.out[i][2] = fma_f32(factor[1], x.z, state.out[i][2]);
                state.out[i][3] = fma_f32(factor[1], x.w, state.out[i][3]);
            }
        }
        live = kept;
        if (live > 1) named_sync(kComputeBarrier, Traits::kComputeThreads);
    }
}

SAPWOOD_DEVICE abi::ItemRequest load_request(const abi::DecodeParams& params, u32 index) {
    const u64 bits = load_readonly_8(params.requests + index);
    return {static_cast<int>(static_cast<u32>(bits)), static_cast<int>(static_cast<u32>(bits >> 32))};
}

template <class Traits>
SAPWOOD_DEVICE u8* out_row(const abi::DecodeParams& params, int request, u32 kv_head, u32 in_group) {
    return static_cast<u8*>(params.out) + static_cast<u64>(request) * static_cast<u64>(params.out_request_stride) +
           static_cast<u64>(kv_head * Traits::kGroup + in_group) * params.out_head_stride;
}

template <class Traits>
SAPWOOD_DEVICE u8* partial_row(const abi::DecodeParams& params, u64 part) {
    return static_cast<u8*>(params.partial_out) + part * (Traits::kHeadDimV * sizeof(typename Traits::Element));
}

template <class Traits>
SAPWOOD_DEVICE void write_lse(const abi::DecodeParams& params, int request, u32 kv_head, u32 in_group, const RowEnd& end) {
    if (params.lse == nullptr) return;
    const u64 heads = static_cast<u64>(params.kv_heads) * Traits::kGroup;
    store_f32(params.lse + static_cast<u64>(request) * heads + kv_head * Traits::kGroup + in_group, end.lse());
}

/// Where this lane's two rows of a row block go.
template <class Traits>
struct RowTargets {
    abi::ItemRequest entry[2];
    SAPWOOD_DEVICE void find(const abi::DecodeParams& params, u32 request_begin, u32 rows, u32 row_block) {
        SAPWOOD_UNROLL for (u32 h = 0; h < 2; ++h) {
            const u32 row = row_block * 16 + lane_id() / 4 + h * 8;
            entry[h] = {0, abi::kUnseen};
            if (row < rows) entry[h] = load_request(params, request_begin + row / Traits::kGroup);
        }
    }
};

/// Swaps rows and columns of the 4x4 words that four neighbouring lanes hold: word j of lane l becomes word l of lane j.
SAPWOOD_DEVICE void quad_transpose(u32 (&x)[4]) {
    const u32 lane = lane_id();
    const auto swap = [lane](u32& low, u32& high, u32 bit) {
        const bool upper = (lane & bit) != 0;
        const u32 got = shfl(upper ? low : high, lane ^ bit);
        (upper ? low : high) = got;
    };
    swap(x[0], x[1], 1);
    swap(x[2], x[3], 1);
    swap(x[0], x[2], 2);
    swap(x[1], x[3], 2);
}

/// Where the accumulators of a lane lie in their row, as HalfOperands leave them: pairs of columns, eight apart. `to` is the lane's
/// first 16 bytes.
struct PairColumns {
    static constexpr u32 kLaneBytes = 16;
    template <class Element, u32 kBlocks>
    SAPWOOD_DEVICE static void store(u8* to, bool wanted, const f32 (&out)[kBlocks][4], u32 h, f32 factor) {
        // Exchanged in fours, they are 16 bytes a store and whole sectors; lanes with nothing to store take part.
        SAPWOOD_UNROLL for (u32 i = 0; i < kBlocks; i += 4) {
            u32 x[4];
            SAPWOOD_UNROLL for (u32 j = 0; j < 4; ++j) x[j] =
                pack2<Element>(out[i + j][h * 2] * factor, out[i + j][h * 2 + 1] * factor);
            quad_transpose(x);
            if (wanted) store_16(to + i * 16, x[0], x[1], x[2], x[3]);
        }
    }
};
/// The same with half of the exchanges, for rows that a launch waits for: 8 bytes a lane, and four lanes fill a sector.
struct PairColumnsBySector {
    /// Of the lane's first 8 bytes in the row.
    SAPWOOD_DEVICE static u32 lane_offset() { return lane_id() % 2 * 16 + lane_id() % 4 / 2 * 8; }
    template <class Element, u32 kBlocks>
    SAPWOOD_DEVICE static void store(u8* to, bool wanted, const f32 (&out)[kBlocks][4], u32 h, f32 factor) {
        // Neighbours exchange halves of two blocks: then a lane has four columns of one.
        const bool upper = lane_id() % 2 == 1;
        u32 words[kBlocks];
        SAPWOOD_UNROLL for (u32 i = 0; i < kBlocks; ++i) words[i] =
            pack2<Element>(out[i][h * 2] * factor, out[i][h * 2 + 1] * factor);
        SAPWOOD_UNROLL for (u32 i = 0; i < kBlocks; i += 2) {
            const u32 got = shfl(upper ? words[i] : words[i + 1], lane_id() ^ 1);
            (upper ? words[i] : words[i + 1]) = got;
        }
        if (!wanted) return;
        SAPWOOD_UNROLL for (u32 i = 0; i < kBlocks; i += 2) store_8(to + i * 16, words[i], words[i + 1]);
    }
};
/// As ByteOperands leave them: four columns, sixteen apart, the even and the odd ones in neighbouring blocks.
struct QuadColumns {
    SAPWOOD_DEVICE static u32 lane_offset() { return lane_id() % 4 * 8; }
    template <class Element, u32 kBlocks>
    SAPWOOD_DEVICE static void store(u8* to, bool wanted, const f32 (&out)[kBlocks][4], u32 h, f32 factor) {
        if (!wanted) return;
        SAPWOOD_UNROLL for (u32 i = 0; i < kBlocks; i += 2) {
            store_8(to + i * 16, pack2<Element>(out[i][h * 2] * factor, out[i + 1][h * 2] * factor),
                    pack2<Element>(out[i][h * 2 + 1] * factor, out[i + 1][h * 2 + 1] * factor));
        }
    }
};

/// One 16-row block of a finished item: each row final or partial.
template <class Traits>
SAPWOOD_DEVICE void write_rows(const abi::DecodeParams& params, const RowTargets<Traits>& targets, const ItemNote& note,
                               const SoftmaxState<Traits::kHeadDimV>& state, u32 row_block) {
    using Columns = typename Select<Traits::kKvBytes == 1, QuadColumns, PairColumnsBySector>::Type;
    const u32 lane = lane_id(), kv_head = note.kv_head;
    SAPWOOD_UNROLL for (u32 h = 0; h < 2; ++h) {
        const u32 row = row_block * 16 + lane / 4 + h * 8;
        const u32 in_group = row % Traits::kGroup;
        const abi::ItemRequest& entry = targets.entry[h];
        RowEnd end = state.end(h);
        if constexpr (Traits::KvElement::kScaled) end.inverse *= bits_f32(note.v_scale);
        const bool final = entry.slot == abi::kFinal, partial = entry.slot >= 0;
        if (!warp_any(final || partial)) continue;
        u8* to = static_cast<u8*>(params.out);
        if (final) {
            to = out_row<Traits>(params, entry.request, kv_head, in_group);
            if (lane % 4 == 0) write_lse<Traits>(params, entry.request, kv_head, in_group, end);
        }
        if (partial) {
            const u64 part = (static_cast<u64>(entry.slot) * params.kv_heads + kv_head) * Traits::kGroup + in_group;
            to = partial_row<Traits>(params, part);
            if (lane % 4 == 0) store_f32(params.partial_exponent + part, end.exponent);
        }
        Columns::template store<typename Traits::Element>(to + Columns::lane_offset(), final || partial, state.out, h, end.inverse);
    }
}

}  // namespace sapwood::kernel
