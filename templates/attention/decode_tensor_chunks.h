// SPDX-License-Identifier: Apache-2.0
// Chunks of K and V by the copy engine, where a chunk's tokens lie in a row, whatever the page size: an instruction each instead of
// a copy warp's dozens, so that tiles are on their way as soon as their stage is free. sm_90a.
#pragma once

#include "attention/decode_traits.h"
#include "isa/warpgroup.h"

namespace sapwood::kernel {

template <class Traits>
struct TensorChunks {
    SAPWOOD_DEVICE static void prepare(const typename Traits::Params& params) {
        prefetch_tensor_map(params.k_map);
        prefetch_tensor_map(params.v_map);
    }
    /// The whole warp calls. `own_row`: of the lane's token in K and V (lane % 16 of chunk lane / 16 of this warp's part of the
    /// tile). False, and nothing done, unless the tokens of `chunk` are neighbours.
    template <TilePart kPart>
    SAPWOOD_DEVICE static bool fetch(const typename Traits::Params& params, u32 barrier, u32 k_tile, u32 v_tile, u32 chunk,
                                     u32 own_row, u32 kv_head) {
        const u32 lane = lane_id(), first = shfl(own_row, chunk * abi::kChunkTokens);
        if (warp_any(lane / abi::kChunkTokens == chunk && own_row != first + lane % abi::kChunkTokens)) return false;
        if (lane == 0) {
            constexpr u32 kDims = (has_keys(kPart) ? Traits::kHeadDim : 0) + (has_values(kPart) ? Traits::kHeadDimV : 0);
            mbarrier_expect_bytes(barrier, abi::kChunkTokens * kDims * Traits::kKvBytes);
            if constexpr (has_keys(kPart)) load<typename Traits::KTile>(k_tile, params.k_map, barrier, chunk, first, kv_head);
            if constexpr (has_values(kPart)) load<typename Traits::VTile>(v_tile, params.v_map, barrier, chunk, first, kv_head);
        }
        return true;
    }

private:
    template <class Tile>
    SAPWOOD_DEVICE static void load(u32 stage, const abi::TensorMap& map, u32 barrier, u32 chunk, u32 row, u32 kv_head) {
        tensor_load_bricks(stage + Tile::row(chunk * abi::kChunkTokens), map, barrier, static_cast<i32>(row), kv_head);
    }
};

}  // namespace sapwood::kernel
