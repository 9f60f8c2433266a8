// SPDX-License-Identifier: Apache-2.0
// Work lists and parameter blocks of the packed kernels: what abi.h is to decode.
#pragma once

#include "tensor_map_abi.h"

namespace sapwood::abi {

/// Keys and who sees them; sapwood::KeyRun in the same words, padded.
struct alignas(16) KeyRun {
    int key_begin, key_end;
    int row_begin, row_end;
    int first, last;  // key k is seen by rows of [k + first, k + last), as far as they lie in [row_begin, row_end)
    int reserved[2];
};

/// KV tiles of block_kv keys, one behind the other.
struct alignas(16) KeySpan {
    int key_begin;       // may be negative, and the last tile may reach behind the last key: such keys are in no run
    unsigned tiles;      // at least 1
    unsigned run_begin;  // of a span that is seen in part: the runs that its keys are in, others between them
    unsigned runs;       // 0: every row of the block sees every key
};

/// Query rows of one block and the keys they see.
struct alignas(16) QueryBlock {
    int row_begin;
    unsigned rows;
    unsigned span_begin;
    unsigned tiles;  // of all its spans
};

/// A tensor [rows, heads, dim], rows and heads anywhere. Strides in bytes.
struct Tensor {
    void* data;
    long long token_stride, head_stride;
};

/// The by-value argument of a packed forward kernel.
struct PackedForwardParams {
    TensorMap q_map, k_map, v_map;  // where the copy engine copies
    Tensor q, k, v, out;
    float* lse;                      // [q_heads, rows]; may be null
    const QueryBlock* query_blocks;  // longest first
    const KeySpan* spans;
    const KeyRun* runs;
    Counters* counters;
    int rows, keys;
    unsigned query_block_count;
    unsigned q_heads;        // these three in bundles of as many as share a block of rows, one by default
    unsigned group;          // query heads a KV head
    unsigned section_heads;  // query heads that are worked on together, so that their keys stay in L2
    float scale_log2;        // as in DecodeParams
    float softcap_log2;
    const int *start_q, *end_k;  // of a pack with arrays: row r sees key k only if start_q[r] <= end_k[k]
};

/// Tiles of kRowTile query rows, one behind the other; row_begin is a multiple of kRowTile.
struct alignas(16) RowSpan {
    int row_begin;
    unsigned tiles;      // at least 1
    unsigned run_begin;  // of a span that is seen in part, as in KeySpan
    unsigned runs;
};
inline constexpr unsigned kRowTile = 64;

/// Keys of one block and query rows that see them: all such rows, or a part of them.
struct alignas(16) KeyBlock {
    int key_begin;
    unsigned short keys;
    unsigned short slot;  // of the sums that the block's parts add to; kNoSlot: it has no other parts, dK and dV go straight out
    unsigned span_begin;
    unsigned tiles;  // of all its spans
    static constexpr unsigned short kNoSlot = 0xffff;
};
/// A block whose parts are added up.
struct alignas(8) KeySlot {
    int key_begin;
    unsigned keys;
};

/// Where a key block stands in the fixed order of additions.
struct alignas(8) BlockTurns {
    unsigned first;  // of its tiles, in BackwardParams::turns
    unsigned part;   // parts of the same block that add dK and dV before this one, counted once for all bundles
};

/// Before the backward pass: row sums, and sums set to zero. Arrays by row are [q_heads, row_tiles * kRowTile].
struct BackwardPrepareParams {
    Tensor out, dout;
    const float* lse;               // [q_heads, rows]
    const float* dlse;              // the same; may be null
    float* lse_log2;                // base-2 logarithm; +inf for a row that sees nothing, and behind the last row
    float* row_sums;                // sum of out * dout, less dlse
    float* dq_sums;                 // [q_heads, row_tiles, kRowTile * head_dim], zeroed
    const unsigned* row_additions;  // to a row tile, in all; not null: sums are zeroed only where there are none
    float* kv_sums;           // [slots, kv_heads, keys of a block * (head_dim + head_dim_v)], then BackwardParams::arrivals; zeroed
    long long kv_sums_count;  // of both, in words
    int rows;
    unsigned row_tiles, q_heads;
};

/// The backward pass: dK and dV a block of keys at a time, dQ by additions to fp32 sums.
struct BackwardParams {
    TensorMap q_map, k_map, v_map, dout_map;  // where the copy engine copies
    Tensor q, k, v, dout, dk, dv;
    const float* lse_log2;
    const float* row_sums;
    float* dq_sums;
    float* kv_sums;
    const KeyBlock* key_blocks;  // in the order in which they are drawn, see BlockOrder
    const RowSpan* spans;
    const KeyRun* runs;
    const BlockTurns* block_turns;  // these three are null where it is not
    const unsigned* turns;          // additions to a row tile before that of this block, by block and tile; of any head
    unsigned* arrivals;             // additions so far: to the tiles of dq_sums; then, in a fixed order, to those of kv_sums, else
                                    // who makes the first to each tile of dq_sums. By mma.sync: in a fixed order alone, and each
                                    // warp's, in each step, for itself
    Counters* counters;
    int rows, keys;
    unsigned row_tiles;
    unsigned key_block_count;
    unsigned bundles;                // of a KV head's query heads, an item walks those of one; all of a head's are in one section
    unsigned kv_heads;               // these three in bundles
    unsigned group;                  // query heads a KV head
    unsigned section_heads;          // KV heads that are worked on together
    float scale;                     // of scores
    float scale_log2, softcap_log2;  // as in DecodeParams
    const int *start_q, *end_k;      // as in PackedForwardParams
};

/// Behind the backward pass: dQ from its sums, and dK and dV of blocks that were worked on in parts.
struct BackwardFinishParams {
    Tensor dq, dk, dv;
    const float* dq_sums;
    const float* kv_sums;
    const KeySlot* key_slots;
    int rows;
    unsigned row_tiles, q_heads, kv_heads, slots;
    float scale;
};

/// Least and greatest of consecutive values of start_q or end_k.
struct alignas(8) Bounds {
    int low, high;
};
inline constexpr unsigned kKeyUnit = 32;        // values of end_k with bounds of their own; start_q has a kRowTile
inline constexpr unsigned kArrayThreads = 128;  // of a block of the kernels below, each warp with work of its own
inline constexpr int kNoLow = 0x7fffffff, kNoHigh = -0x7fffffff - 1;

/// Before the tile lists of a pack with arrays: bounds of one array.
struct ArrayBoundsParams {
    const int* values;
    Bounds* bounds;
    unsigned count;   // of values
    unsigned unit;    // values a bound, a multiple of 32
    unsigned* zeros;  // as many words as there are bounds are set to zero; may be null
};

/// What is known of a block of a pack with arrays before the arrays are: its runs, how many spans it has room for and, of keys, the
/// row tiles that its part of the block may walk.
struct alignas(8) ArrayBlock {
    unsigned run_begin, runs;
    unsigned room;
    unsigned tile_begin, tile_end;
    unsigned reserved;
};

/// The tile lists of a pack with arrays, forward: fills in QueryBlock::tiles and the spans.
struct ForwardTilesParams {
    const int* start_q;
    const Bounds* bounds;  // of end_k
    const KeyRun* runs;
    const ArrayBlock* blocks;  // beside query_blocks
    QueryBlock* query_blocks;
    KeySpan* spans;
    unsigned query_block_count;
    unsigned units;  // bounds there are
    int block_kv;
};

/// The same for a backward pass: KeyBlock::tiles and the spans.
struct BackwardTilesParams {
    const int* end_k;
    const Bounds* bounds;  // of start_q
    const KeyRun* runs;
    const ArrayBlock* blocks;
    KeyBlock* key_blocks;
    RowSpan* spans;
    unsigned* row_additions;  // as in BackwardPrepareParams, counted up from zero
    unsigned key_block_count;
    int block_kv;
};

}  // namespace sapwood::abi
