// SPDX-License-Identifier: Apache-2.0
// The one header that host code and kernels share: work lists and parameter blocks as plain fixed-width data.
#pragma once

namespace sapwood::abi {

/// Keys are visited in chunks of 16 consecutive KV positions: the k extent of one mma step.
inline constexpr unsigned kChunkTokens = 16;

/// Up to 16 consecutive positions of one node, seen by the rows [row_begin, row_end) of its work item (row = request * group + head).
struct alignas(16) Chunk {
    unsigned position;         // first KV position
    unsigned short row_begin;  // row_begin == row_end: padding, nothing is loaded
    unsigned short row_end;
    unsigned short tokens;     // valid keys, 1..16 (0 for padding)
    unsigned short reserved0;
    unsigned reserved1;
};

/// A run of chunks and the contiguous requests that attend them, for one KV head at a time. Chunks are padded to whole tiles.
struct alignas(16) Item {
    unsigned chunk_begin;
    unsigned tiles;
    unsigned request_begin;   // into ItemRequest
    unsigned short requests;  // rows = requests * group <= block_q
    unsigned short partial;   // 1 if some request has partial results to merge
};

/// Where the rows of one request of one item go.
struct alignas(16) ItemRequest {
    int request;     // row of Q, out and lse
    int slot;        // row of the partial results if slots > 1
    int slot_begin;  // first slot of this request; also names its arrival counter
    int slots;       // parts of this request over all items: 1 = the result is final here, 0 = it sees nothing of this item
};

struct alignas(16) WorkHeader {
    unsigned items;
    unsigned reserved[3];
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
    float* partial_out;      // [slots, kv_heads, group, head_dim_v]
    float* partial_lse;      // [slots, kv_heads, group], natural logarithm
    unsigned* arrivals;      // [slots, kv_heads], zero between launches
    unsigned* ticket;        // [0] next ticket, [1] blocks that are done; zero between launches
    long long q_request_stride, out_request_stride;
    unsigned q_head_stride, out_head_stride;
    long long k_head_stride, v_head_stride;  // wide: an HND pool keeps whole heads apart
    unsigned k_token_stride, v_token_stride;
    unsigned kv_heads;
    unsigned item_capacity;
    float scale_log2;   // scale * log2(e); with a soft-cap: scale / softcap
    float softcap_log2; // softcap * log2(e)
};

}  // namespace sapwood::abi
