// SPDX-License-Identifier: Apache-2.0
// Shared-memory layout and roles of the decode kernel, as constants. lib/plan computes the same size in closed form; both include
// this header's formula through decode_shared_bytes.
#pragma once

#include "abi.h"

namespace sapwood::abi {

/// What a stage of the ring holds that is not a tile.
enum class StageKind : unsigned { query, scratch, stop };

/// Who multiplies: single warps (mma.sync, every SM), or warpgroups (wgmma, sm_90a).
enum class Mainloop : unsigned { mma = 1, wgmma = 2 };

/// Bytes of an element of K and V in shared memory: wgmma reads Q's type there, so that fewer are widened on the way.
constexpr unsigned decode_tile_element(unsigned kv_bytes, Mainloop mainloop) { return mainloop == Mainloop::wgmma ? 2 : kv_bytes; }

struct DecodeShape {
    unsigned head_dim, head_dim_v, group, warps, producers, block_kv, stages;
    bool mask;
    unsigned kv_bytes = 2;  // decode_tile_element
    Mainloop mainloop = Mainloop::mma;
};

constexpr unsigned align_up(unsigned value, unsigned to) { return (value + to - 1) / to * to; }
constexpr unsigned max_unsigned(unsigned a, unsigned b) { return a > b ? a : b; }

constexpr unsigned decode_block_q(const DecodeShape& s) { return s.warps * 16; }
/// Warpgroups with twice the keys a tile: their scores take the registers that Q would have, and Q stays in shared memory.
constexpr bool decode_query_shared(const DecodeShape& s) { return s.mainloop == Mainloop::wgmma && s.block_kv == 128; }
/// Few stages, long tiles: K's half of a stage is filled again while V's is still read. Q comes in K's half.
constexpr bool decode_values_apart(const DecodeShape& s) { return decode_query_shared(s); }
constexpr bool decode_query_in_registers(const DecodeShape& s) { return s.head_dim <= 128 && !decode_query_shared(s); }
/// Mask words come with their tile, unless Q and the tiles leave them no room: then the rows that need them read them.
constexpr bool decode_masks_staged(const DecodeShape& s) { return s.mask && !decode_query_shared(s); }

/// Registers of a thread of each role, where both roles are whole warpgroups and the copy warps hand over some of theirs; together
/// those of the launch. None: 0.
struct DecodeRegisters {
    unsigned compute, copies;
};
constexpr DecodeRegisters decode_registers(const DecodeShape& s, unsigned blocks) {
    if (s.warps != 8 || s.producers != 4) return {0, 0};
    if (blocks == 1) return decode_query_shared(s) ? DecodeRegisters{224, 56} : DecodeRegisters{208, 88};  // of 3 * 168
    // Of 3 * 80. Sixteen compute warps an SM: short items are waits for what came before, which only other warps can fill.
    if (blocks == 2 && s.kv_bytes == 2) return {96, 48};
    return {0, 0};
}

/// Requests of an item, at most.
constexpr unsigned decode_requests(const DecodeShape& s) { return decode_block_q(s) / s.group; }
constexpr unsigned decode_chunk_bytes(const DecodeShape& s) {
    return s.block_kv / kChunkTokens * static_cast<unsigned>(sizeof(Chunk));
}
/// One word a chunk and request: which of its tokens, or of the 32 that it is half of, the request sees.
constexpr unsigned decode_mask_bytes(const DecodeShape& s) {
    return decode_masks_staged(s) ? s.block_kv / kChunkTokens * decode_requests(s) * 4 : 0;
}
/// Header of a stage: kind, KV head, the item, then the chunks of a tile and their masks or, of a scratch stage, row maxima and
/// sums.
constexpr unsigned decode_header_bytes(const DecodeShape& s) {
    const unsigned stats = s.warps / 2 * 16 * 2 * 4;
    return align_up(32 + max_unsigned(decode_chunk_bytes(s) + decode_mask_bytes(s), stats), 128);
}
constexpr unsigned decode_tile_bytes(const DecodeShape& s) { return s.block_kv * (s.head_dim + s.head_dim_v) * s.kv_bytes; }
/// A stage serves as K and V tile, as Q tile, or as scratch where warps that shared one row block by keys add up their results.
constexpr unsigned decode_stage_bytes(const DecodeShape& s) {
    const unsigned query = decode_block_q(s) * s.head_dim * 2;
    const unsigned scratch = s.warps / 2 * 16 * s.head_dim_v * 4;
    return align_up(max_unsigned(decode_tile_bytes(s), max_unsigned(query, scratch)), 1024);
}
constexpr unsigned decode_query_hold_bytes(const DecodeShape& s) {
    return decode_query_in_registers(s) ? 0 : decode_block_q(s) * s.head_dim * 2;
}
/// Ticket mailbox, a note of the item for each compute warp.
constexpr unsigned decode_small_bytes(const DecodeShape& s) { return 16 + s.warps * 16; }
/// Full and empty of each stage, of its values too where they come and go apart, and the one by which warpgroups start in turn.
constexpr unsigned decode_barrier_bytes(const DecodeShape& s) { return ((decode_values_apart(s) ? 4 : 2) * s.stages + 1) * 8; }
constexpr unsigned decode_shared_bytes(const DecodeShape& s) {
    return s.stages * (decode_stage_bytes(s) + decode_header_bytes(s)) + decode_query_hold_bytes(s) + decode_small_bytes(s) +
           align_up(decode_barrier_bytes(s), 16);
}

}  // namespace sapwood::abi
