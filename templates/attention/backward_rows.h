// SPDX-License-Identifier: Apache-2.0
// What is done to every query row before and behind the backward kernel.
#pragma once

#include "attention/decode_epilogue.h"
#include "isa/warpgroup.h"
#include "packed_abi.h"

namespace sapwood::kernel {

/// Pieces of work, a warp each in turn: visit(first, second, head), heads fastest, because heads of a row lie side by side.
template <class Visit>
SAPWOOD_DEVICE void each_piece(u32 firsts, u32 seconds, u32 heads, u32 warps, const Visit& visit) {
    const u32 count = firsts * seconds * heads;
    for (u32 i = block_id() * warps + warp_id(); i < count; i += grid_size() * warps)
        visit(i / heads / seconds, i / heads % seconds, i % heads);
}

/// Eight rows of one head: row sums, and sums of dQ set to zero unless the backward kernel does without.
template <class Config>
SAPWOOD_DEVICE void prepare_rows(const abi::BackwardPrepareParams& params, u32 row_begin, u32 head) {
    constexpr u32 kVectors = Config::kHeadDimV / 8;                       // of a row, 16 bytes each
    constexpr u32 kLanes = kVectors <= 8 ? 8 : kVectors <= 16 ? 16 : 32;  // a power of two: lanes behind the vectors rest
    constexpr u32 kRowsAtOnce = 32 / kLanes, kSteps = 8 / kRowsAtOnce;
    const u32 lane = lane_id(), own = row_begin + lane / kLanes;
    const auto rows = static_cast<u32>(params.rows);
    U32x4 out[kSteps], dout[kSteps];
    SAPWOOD_UNROLL for (u32 i = 0; i < kSteps; ++i) {
        const u32 row = own + i * kRowsAtOnce;
        const auto at = [&](const abi::Tensor& t) {
            return static_cast<const u8*>(t.data) + static_cast<i64>(row) * t.token_stride +
                   static_cast<i64>(head) * t.head_stride + lane % kLanes * 16;
        };
        out[i] = dout[i] = {0, 0, 0, 0};
        if (row < rows && lane % kLanes < kVectors) {
            out[i] = load_readonly_16(at(params.out));
            dout[i] = load_readonly_16(at(params.dout));
        }
    }
    const u64 padded = static_cast<u64>(head) * params.row_tiles * abi::kRowTile + row_begin;
    if (params.row_additions == nullptr || load_earlier_4(params.row_additions + row_begin / abi::kRowTile) == 0) {
        f32* zero = params.dq_sums + padded * Config::kHeadDim;
        SAPWOOD_UNROLL for (u32 i = 0; i < 8 * Config::kHeadDim; i += 128) store_16(zero + i + lane * 4, 0, 0, 0, 0);
    }
    SAPWOOD_UNROLL for (u32 i = 0; i < kSteps; ++i) {
        const u32 a[4] = {out[i].x, out[i].y, out[i].z, out[i].w}, b[4] = {dout[i].x, dout[i].y, dout[i].z, dout[i].w};
        f32 sum = 0;
        SAPWOOD_UNROLL for (u32 j = 0; j < 4; ++j) {
            f32 a0, a1, b0, b1;
            unpack2<typename Config::Element>(a[j], a0, a1);
            unpack2<typename Config::Element>(b[j], b0, b1);
            sum = fma_f32(a0, b0, fma_f32(a1, b1, sum));
        }
        SAPWOOD_UNROLL for (u32 mask = kLanes / 2; mask > 0; mask /= 2) sum += shfl_xor(sum, mask);
        if (lane % kLanes != 0) continue;
        const u32 row = own + i * kRowsAtOnce;
        f32 lse = infinity();
        if (row < rows) {
            const u64 given = static_cast<u64>(head) * rows + row;
            const f32 natural = bits_f32(load_readonly_4(params.lse + given));
            if (natural > -infinity()) lse = natural * kLog2E;
            if (params.dlse != nullptr) sum -= bits_f32(load_readonly_4(params.dlse + given));
        }
        store_f32(params.lse_log2 + padded + (row - row_begin), lse);
        store_f32(params.row_sums + padded + (row - row_begin), sum);
    }
}

template <class Config>
SAPWOOD_DEVICE void backward_prepare(const abi::BackwardPrepareParams& params) {
    let_later_kernels_start();
    wait_for_earlier_kernels();
    each_piece(params.row_tiles, abi::kRowTile / 8, params.q_heads, Config::kWarps,
               [&](u32 tile, u32 piece, u32 head) { prepare_rows<Config>(params, tile * abi::kRowTile + piece * 8, head); });
    const i64 stride = static_cast<i64>(grid_size()) * Config::kWarps * 128;
    for (i64 i = (static_cast<i64>(block_id()) * Config::kWarps * 32 + thread_id()) * 4; i < params.kv_sums_count; i += stride)
        store_16(params.kv_sums + i, 0, 0, 0, 0);
}

/// Rounds what one warp of `warps` held of a tile of accumulators, 16 rows: it lies by group of eight columns, warp, and inside as
/// add_accumulators leaves it. `row` is the first of the 16 in the tensor, of which `there` exist.
template <class Element, u32 kColumns>
SAPWOOD_DEVICE void finish_accumulators(const f32* held, u32 warps, const abi::Tensor& tensor, i64 row, i32 there, u32 head,
                                        u32 first_column, f32 scale) {
    const u32 lane = lane_id();
    u8* to = static_cast<u8*>(tensor.data) + static_cast<i64>(head) * tensor.head_stride + first_column * 2 + lane % 4 * 16;
    SAPWOOD_NO_UNROLL for (u32 i = 0; i < kColumns / 8; i += 4) {  // few registers: the more warps, the more in flight
        f32 d[4][4];
        SAPWOOD_UNROLL for (u32 j = 0; j < 4; ++j) load_accumulators(held + (i + j) * warps * 128, d[j]);
        SAPWOOD_UNROLL for (u32 h = 0; h < 2; ++h) {
            const i32 in_piece = static_cast<i32>(lane / 4 + h * 8);
            u32 x[4];
            SAPWOOD_UNROLL for (u32 j = 0; j < 4; ++j) x[j] = pack2<Element>(d[j][h * 2] * scale, d[j][h * 2 + 1] * scale);
            quad_transpose(x);
            if (in_piece < there) store_16(to + (row + in_piece) * tensor.token_stride + i * 16, x[0], x[1], x[2], x[3]);
        }
    }
}

/// dQ by row tile, 16 rows and, where they are many, half of the columns; dK and dV by slot and KV head.
template <class Config>
SAPWOOD_DEVICE void backward_finish(const abi::BackwardFinishParams& params) {
    using Element = typename Config::Element;
    let_later_kernels_start();
    wait_for_earlier_kernels();
    constexpr u32 kParts = Config::kHeadDim % 64 == 0 ? 2 : 1, kColumns = Config::kHeadDim / kParts;
    each_piece(params.row_tiles, 4 * kParts, params.q_heads, Config::kWarps, [&](u32 tile, u32 piece, u32 head) {
        const u32 part = piece / 4, warp = piece % 4;
        const f32* held = params.dq_sums + (static_cast<u64>(head) * params.row_tiles + tile) * abi::kRowTile * Config::kHeadDim +
                          part * abi::kRowTile * kColumns + warp * 128;
        const i64 row = static_cast<i64>(tile) * abi::kRowTile + warp * 16;
        finish_accumulators<Element, kColumns>(held, 4, params.dq, row, params.rows - static_cast<i32>(row), head, part * kColumns,
                                               params.scale);
    });
    constexpr u32 kKeys = Config::kBlockKv;
    each_piece(params.slots, kKeys / 16, params.kv_heads, Config::kWarps, [&](u32 slot, u32 warp, u32 head) {
        const u64 words = load_readonly_8(params.key_slots + slot);
        const f32* held = params.kv_sums +
                          static_cast<u64>(slot * params.kv_heads + head) * kKeys * (Config::kHeadDim + Config::kHeadDimV) +
                          warp * 128;
        const i64 row = static_cast<i64>(static_cast<u32>(words)) + warp * 16;
        const i32 there = static_cast<i32>(static_cast<u32>(words >> 32)) - static_cast<i32>(warp * 16);
        finish_accumulators<Element, Config::kHeadDim>(held, kKeys / 16, params.dk, row, there, head, 0, params.scale);
        finish_accumulators<Element, Config::kHeadDimV>(held + kKeys * Config::kHeadDim, kKeys / 16, params.dv, row, there, head, 0,
                                                        1.0f);
    });
}

}  // namespace sapwood::kernel
