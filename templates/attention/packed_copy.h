// SPDX-License-Identifier: Apache-2.0
// Copy policies of the packed kernels: how the tiles of Q, K and V come into shared memory.
#pragma once

#include "attention/packed_traits.h"
#include "isa/warpgroup.h"

namespace sapwood::kernel {

/// By the copy engine: one thread asks for whole tiles.
template <class Traits>
struct TensorCopy {
    static constexpr u32 kThreads = 1;
    static constexpr u32 kArrivals = 1;
    const abi::PackedForwardParams& params;

    /// `head` counts bundles of kHeads, as items do.
    SAPWOOD_DEVICE void query(u32 to, u32 barrier, i32 row, u32 head) const {
        if constexpr (Traits::kHeads > 1) {
            tensor_load_heads<CacheHint::once>(to, params.q_map, barrier, row, head * Traits::kHeads);
        } else {
            tensor_load<CacheHint::once>(to, params.q_map, barrier, row, head);
        }
        mbarrier_arrive_bytes(barrier, Traits::kQueryBytes);
    }
    SAPWOOD_DEVICE void keys(u32 to, u32 barrier, i32 row, u32 head) const {
        tensor_load<CacheHint::again>(to, params.k_map, barrier, row, head);
        mbarrier_arrive_bytes(barrier, Traits::kKeyBytes);
    }
    SAPWOOD_DEVICE void values(u32 to, u32 barrier, i32 row, u32 head) const {
        tensor_load<CacheHint::again>(to, params.v_map, barrier, row, head);
        mbarrier_arrive_bytes(barrier, Traits::kValueBytes);
    }
    /// For a stage that only brings words.
    SAPWOOD_DEVICE void nothing(u32 barrier) const { mbarrier_arrive_bytes(barrier, 0); }
};

/// 16 bytes of row `at`, or zeros where there is no such row below `limit`.
SAPWOOD_DEVICE void copy_piece(u32 to, const u8* column, i64 stride, i32 at, i32 limit) {
    const bool there = at >= 0 && at < limit;
    cp_async_16(to, column + (there ? at : 0) * stride, there ? 16 : 0);
}

/// By copy warps, 16 bytes a lane.
template <class Traits>
struct AsyncCopy {
    static constexpr u32 kThreads = Traits::kProducers * 32;
    static constexpr u32 kArrivals = kThreads * 2;  // the thread's copies have landed, and what it wrote is written
    const abi::PackedForwardParams& params;

    SAPWOOD_DEVICE static void arrive(u32 barrier) {
        cp_async_arrive(barrier);
        mbarrier_arrive(barrier);
    }
    /// Rows [row, row + kRows) of one head; those outside [0, limit) become zeros.
    template <class Tile, u32 kRows, u32 kColumns>
    SAPWOOD_DEVICE static void copy(u32 to, const abi::Tensor& tensor, i32 row, u32 head, i32 limit) {
        const u32 thread = thread_id() - Traits::kComputeThreads;
        const u8* base = static_cast<const u8*>(tensor.data) + static_cast<i64>(head) * tensor.head_stride;
        SAPWOOD_NO_UNROLL for (u32 i = thread; i < kRows * kColumns; i += kThreads) {
            const u32 r = i / kColumns, column = i % kColumns;
            copy_piece(to + Tile::offset(r, column), base + column * 16, tensor.token_stride, row + static_cast<i32>(r), limit);
        }
    }
    SAPWOOD_DEVICE void query(u32 to, u32 barrier, i32 row, u32 head) const {
        SAPWOOD_NO_UNROLL for (u32 h = 0; h < Traits::kHeads; ++h) {
            copy<typename Traits::QTile, Traits::kTokens, Traits::kHeadDim / 8>(
                to + h * Traits::kTokens * Traits::QTile::kPitch, params.q, row, head * Traits::kHeads + h, params.rows);
        }
        arrive(barrier);
    }
    SAPWOOD_DEVICE void keys(u32 to, u32 barrier, i32 row, u32 head) const {
        copy<typename Traits::KTile, Traits::kBlockKv, Traits::kHeadDim / 8>(to, params.k, row, head, params.keys);
        arrive(barrier);
    }
    SAPWOOD_DEVICE void values(u32 to, u32 barrier, i32 row, u32 head) const {
        copy<typename Traits::VTile, Traits::kBlockKv, Traits::kHeadDimV / 8>(to, params.v, row, head, params.keys);
        arrive(barrier);
    }
    SAPWOOD_DEVICE void nothing(u32 barrier) const { arrive(barrier); }
};

}  // namespace sapwood::kernel
