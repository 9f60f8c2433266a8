// SPDX-License-Identifier: Apache-2.0
// The one header that host code and kernels share: work lists and parameter blocks as plain fixed-width data.
#pragma once

namespace sapwood::abi {

/// Keys are visited in chunks of 16 consecutive KV positions: the k extent of one mma step.
inline constexpr unsigned kChunkTokens = 16;

/// Up to 16 consecutive positions of one node, seen by the rows [row_begin, row_end) of its work item (row = request * group +
/// head).
struct alignas(16) Chunk {
    unsigned position;         // first KV position
    unsigned short row_begin;  // row_begin == row_end: padding, nothing is loaded
    unsigned short row_end;
    unsigned tokens;  // valid keys, 1..16 (0 for padding); in a kernel with masks also kMasked and mask column
    // Of its tile, in the tile's first chunks; units that share rows have each their part of what these see. Units of 16 rows, in
    // the first two, low word first: bit `warp * chunks of a tile + chunk` says that the warp attends the chunk, which some of its
    // rows see. Units of 64, in the first: bit `unit`, that the warpgroup attends the tile, and bit `kWholeShift + unit`, that each
    // of its rows sees every key there.
    unsigned tile_word;
};
inline constexpr unsigned kWholeShift = 16;

/// In a kernel with masks. Chunk::tokens of a chunk that has one: of its rows, each sees the keys whose bit is set in its request's
/// mask row. The column is the chunk's place in that row, in units of 16 bits.
inline constexpr unsigned kTokensMask = 31;
inline constexpr unsigned kMasked = 32;
inline constexpr unsigned kGathered = 64;  // its keys' positions are listed, from gather[position] on
inline constexpr unsigned kMaskColumnShift = 8;

/// A run of chunks and the contiguous requests that attend them, for one KV head at a time. Chunks are padded to whole tiles.
struct alignas(16) Item {
    unsigned chunk_begin;
    unsigned tiles;
    unsigned request_begin;   // into ItemRequest
    unsigned short requests;  // rows = requests * group <= block_q
    unsigned short in_a_row;  // 1: the rows of Q of its requests are neighbours, in order
};

/// Where the rows of one request of one item go.
struct alignas(8) ItemRequest {
    int request;  // row of Q, out and lse
    int slot;     // row of the partial results, or one of the two below
};
inline constexpr int kFinal = -1;   // the only part of this request: the result goes straight out
inline constexpr int kUnseen = -2;  // the request sees nothing of this item: nothing is written

/// A request with several parts: its slots are neighbours, in the order in which they are added up.
struct alignas(16) Merge {
    int request;
    int slot_begin;
    int slots;
    int reserved;
};

struct alignas(16) WorkHeader {
    unsigned items;
    unsigned merges;
    unsigned reserved[2];
};

/// Counters of a plan, zero between launches: two come round by themselves, the last block to leave puts `finished` back.
struct alignas(16) Counters {
    unsigned ticket;    // next work item to draw
    unsigned finished;  // work items whose results are written
    unsigned left;      // blocks that are done
    unsigned reserved;
};

/// The by-value argument of a decode kernel. Strides are in bytes.
struct DecodeParams {
    const void* q;
    const void* k;
    const void* v;
    void* out;
    float* lse;             // may be null
    const int* page_table;  // null for contiguous KV
    const WorkHeader* header;
    const Item* items;
    const ItemRequest* requests;
    const Chunk* chunks;
    const Merge* merges;
    const unsigned* masks;    // [rows of Q, mask_words]; bit i of a row is the row's token i; null without masks
    const unsigned* gather;   // positions of gathered chunks
    void* partial_out;        // [slots, kv_heads, group, head_dim_v], elements of `out`: each part is rounded as a result is
    float* partial_exponent;  // [slots, kv_heads, group], base-2 logarithm of the part's sum of exponentials
    Counters* counters;
    long long q_request_stride, out_request_stride;
    unsigned q_head_stride, out_head_stride;
    long long k_head_stride, v_head_stride;  // wide: an HND pool keeps whole heads apart
    unsigned k_token_stride, v_token_stride;
    unsigned kv_heads;
    unsigned item_capacity;
    unsigned mask_words;
    float scale_log2;    // scale * log2(e); with a soft-cap: scale / softcap
    float softcap_log2;  // softcap * log2(e)
    // Of a kernel whose K and V are e4m3: [kv_heads] factors; null: 1. Last, so that other kernels find their arguments where they
    // were.
    const float* k_scale;
    const float* v_scale;
};

}  // namespace sapwood::abi
