// SPDX-License-Identifier: Apache-2.0
// e4m3 K and V for products that read Q's type from shared memory: a copy warp takes a chunk's bytes into registers, widens them
// and stores what a copy of 16-bit rows would have left. Once for all rows of a work item, where widening in front of the products
// is once for each warp's 16.
#pragma once

#include "attention/decode_traits.h"

namespace sapwood::kernel {

/// Elements of K and V are copied as they are.
struct NoWidening {};

/// One chunk of K or of V, 16 bytes a lane and step. The loads do not need the stage that they are stored to, and travel while it
/// is waited for.
template <class To, class Tile, u32 kHeadDim>
struct WideningCopy {
    static constexpr u32 kPieces = kHeadDim / 16;  // 16 bytes each, a row
    static constexpr u32 kSteps = abi::kChunkTokens * kPieces / 32;
    static_assert(kPieces % 4 == 0 && 32 % kPieces == 0);
    U32x4 bytes[kSteps];

    /// `own_row`: of the lane's token (lane % 16). Rows from `tokens` on are zeros: their weight is 0, and 0 * NaN would not be.
    SAPWOOD_DEVICE void load(const u8* head, u32 own_row, u32 tokens, u32 token_stride) {
        SAPWOOD_UNROLL for (u32 step = 0; step < kSteps; ++step) {
            const u32 index = step * 32 + lane_id(), token = index / kPieces;
            const u64 row = shfl(own_row, token);
            bytes[step] = {0, 0, 0, 0};
            if (token < tokens) bytes[step] = load_earlier_16(head + row * token_stride + index % kPieces * 16);
        }
    }
    SAPWOOD_DEVICE void store(u8* tile, u32 first_row) const {
        constexpr u32 kRowsAStep = 32 / kPieces;
        const u32 row = lane_id() / kPieces, piece = lane_id() % kPieces;
        // Lanes of the second panel begin with their second column: together with those of the first they touch every bank once.
        const bool swapped = piece / 4 % 2 != 0;
        u8* to = tile + Tile::row(first_row) + Tile::row(row) + piece / 4 * Tile::kGroupStride;
        SAPWOOD_UNROLL for (u32 step = 0; step < kSteps; ++step) {
            SAPWOOD_UNROLL for (u32 c = 0; c < 2; ++c) {
                const bool second = swapped != (c == 1);
                U32x4 column;
                widen_e4m3<To>(second ? bytes[step].z : bytes[step].x, column.x, column.y);
                widen_e4m3<To>(second ? bytes[step].w : bytes[step].y, column.z, column.w);
                // The rows of one step have the keys of its first row, XOR the row within the step.
                const u32 place = (piece % 4 * 2 + second) ^ Tile::key(row) ^ Tile::key(step * kRowsAStep);
                *reinterpret_cast<U32x4*>(to + Tile::row(step * kRowsAStep) + place * 16) = column;
            }
        }
    }
};

}  // namespace sapwood::kernel
