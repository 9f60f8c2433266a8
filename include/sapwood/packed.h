// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "sapwood/decode.h"
#include "sapwood/types.h"

namespace sapwood {

/// Shapes of attention over a pack of token sequences or trees, as in training and prefill.
struct PackedProblem {
    std::int32_t q_heads = 0;     ///< Hq
    std::int32_t kv_heads = 0;    ///< Hkv; Hq % Hkv == 0. Query head h reads KV head h / (Hq / Hkv)
    std::int32_t head_dim = 0;    ///< of Q and K: 64, 96, 128, 192, 256
    std::int32_t head_dim_v = 0;  ///< of V and O; 0 = head_dim
    DType dtype = DType::bf16;    ///< of Q, K, V and O
    float scale = 0;              ///< of the fp32 scores; 0 = 1 / sqrt(head_dim)
    float softcap = 0;            ///< 0 = none; else score = softcap * tanh(score / softcap), after the scale
};

/// A run of tokens of one tree of a pack. Segments are listed depth first, a parent before its children.
struct Segment {
    std::int32_t parent = -1;  ///< index of the parent in the list; -1 = root: a tree (or a sequence) of its own
    std::int64_t tokens = 0;   ///< 0 is legal
};

/// Consecutive keys that are seen by the same rule: key k of [key_begin, key_end) is seen by the query rows r with
/// row_begin <= r < row_end and k + first <= r < k + last. Every visibility that a pack can have is a list of such runs.
struct KeyRun {
    std::int32_t key_begin = 0, key_end = 0;
    std::int32_t row_begin = 0, row_end = 0;
    std::int32_t first = 0, last = 0;  ///< kNoFirst, kNoLast: no such limit
    static constexpr std::int32_t kNoFirst = -(1 << 30), kNoLast = 1 << 30;

    bool operator==(const KeyRun&) const = default;
};

/// Which keys of a varlen sequence a query sees; causal masks are aligned at the bottom right: the last row sees the last key.
struct PackedMask {
    bool causal = false;
    std::int32_t window_left = -1;   ///< keys before the query's own position that it sees at most; -1 = all
    std::int32_t window_right = -1;  ///< keys behind it, unless causal; -1 = all
    /// Of these, query q sees key k if start_q[q] <= end_k[k]: two arrays on the device that every call brings and that may change
    /// from call to call, and so from replay to replay of a graph. FlashAttention-2's tree mask; needs causal.
    bool dfs_arrays = false;
};

/// What lies in the rows of Q and in the rows of K and V, and who sees whom. Plain host data; O(segments) in size, nothing a token.
/// All functions throw Error{kInvalidProblem} saying which segment or offset is wrong. At most 2^29 rows and keys.
class Pack {
public:
    /// Self-attention over trees whose tokens lie depth first, segment by segment: a token sees the tokens of its ancestor
    /// segments, and its own segment up to itself. Sequences that are not trees are roots without children. FlashAttention-2's tree
    /// mask (start_q, end_k) with its segments.
    static Pack from_segments(std::span<const Segment> segments);
    /// Varlen sequences: sequence i is rows cu_q[i] to cu_q[i + 1] of Q and rows cu_k[i] to cu_k[i + 1] of K and V. Both begin with
    /// 0, do not fall, and have the same length. With dfs_arrays, visible_pairs() and the numbers of plans are those of the mask
    /// without the arrays: what there can be at most.
    static Pack from_cu_seqlens(std::span<const std::int32_t> cu_q, std::span<const std::int32_t> cu_k, const PackedMask& mask);

    std::int64_t rows() const noexcept { return rows_; }  ///< of Q and O
    std::int64_t keys() const noexcept { return keys_; }  ///< rows of K and V
    std::int64_t visible_pairs() const noexcept { return visible_pairs_; }
    std::span<const KeyRun> runs() const noexcept { return runs_; }  ///< ascending by key and by row_begin
    bool dfs_arrays() const noexcept { return dfs_arrays_; }         ///< calls bring start_q and end_k

private:
    std::vector<KeyRun> runs_;
    std::int64_t rows_ = 0, keys_ = 0, visible_pairs_ = 0;
    bool dfs_arrays_ = false;
    void add(const KeyRun& run);
};

/// Tile sizes of a packed kernel; 0 = chosen by the planner.
struct PackedConfig {
    Mainloop mainloop = Mainloop::choose;
    std::int32_t warps = 0;      ///< compute warps a block, 16 query rows each in the forward pass
    std::int32_t producers = 0;  ///< copy warps a block; the backward pass by mma.sync has none
    std::int32_t block_kv = 0;   ///< keys a tile; in the backward pass those that stay in a block
    std::int32_t stages = 0;     ///< K tiles and V tiles in flight; in the backward pass Q tiles and dO tiles
    std::int32_t blocks = 0;     ///< resident blocks an SM
    /// Query heads of a group that share a block of rows in the forward pass ("PackGQA"), 1, 2, 4 or 8: for sequences of few
    /// queries, of which a block of one head would hold several that see different keys. Chosen with the pack.
    /// In the backward pass: those that a work item walks one after the other, the whole group (0) or, where its sums of dQ would
    /// not stay in L2 or a fixed order would have it wait, fewer, a divisor.
    std::int32_t heads = 0;

    std::string to_string() const;
};

/// What a packed plan will do, in numbers.
struct PackedPlanInfo {
    PackedConfig config;
    std::int64_t rows = 0, keys = 0;
    std::int64_t visible_pairs = 0;  ///< of one head
    std::int64_t tiles = 0;          ///< query block x KV tile products of one head
    std::int64_t partial_tiles = 0;  ///< of these, the ones that compare
    std::int64_t blocks = 0;         ///< query blocks of one head
    std::int64_t list_bytes = 0;     ///< device memory of the tile lists: all that a forward pass needs beyond its tensors
    bool dfs_arrays = false;         ///< tiles and pairs are bounds: which of them are walked, the arrays of a call say
    double flops = 0;                ///< of visible pairs: 2 * (head_dim + head_dim_v) * Hq each
    std::int32_t grid = 0;
    TuneMatch tuned = TuneMatch::none;  ///< where the configuration comes from
};

/// Tile lists for one pack, made by Engine::plan_packed; plain host data. Move-only. In flight on one stream at a time.
class PackedPlan {
public:
    PackedPlan(PackedPlan&&) noexcept;
    PackedPlan& operator=(PackedPlan&&) noexcept;
    ~PackedPlan();

    const PackedProblem& problem() const noexcept;
    PackedPlanInfo info() const;
    std::string kernel_key() const;  ///< canonical text of the kernel this plan runs
    /// And before it those that make its tile lists from the arrays of a call, in the order in which they run.
    std::vector<std::string> kernel_keys() const;

    struct Impl;
    Impl& impl() noexcept { return *impl_; }
    const Impl& impl() const noexcept { return *impl_; }
    explicit PackedPlan(std::unique_ptr<Impl> impl);

private:
    std::unique_ptr<Impl> impl_;
};

/// Tensors of one call. Device pointers on a GPU engine, host pointers on a host engine; Q, K, V and out 16-byte aligned. Strides
/// are in elements, multiples of 8; 0 = densely packed [rows, heads, dim]. The last dimension is contiguous. Every element of K and
/// V must be finite: masked keys have weight 0, and 0 * Inf is NaN.
struct PackedTensors {
    const void* q = nullptr;  ///< [rows, Hq, head_dim]
    const void* k = nullptr;  ///< [keys, Hkv, head_dim]
    const void* v = nullptr;  ///< [keys, Hkv, head_dim_v]
    void* out = nullptr;      ///< [rows, Hq, head_dim_v]; 0 for a row that sees nothing
    float* lse = nullptr;     ///< optional [Hq, rows] fp32, natural logarithm; -inf for a row that sees nothing
    /// [rows] and [keys]; of packs with dfs_arrays, and only of these.
    const std::int32_t *start_q = nullptr, *end_k = nullptr;
    std::int64_t q_token_stride = 0, q_head_stride = 0;
    std::int64_t k_token_stride = 0, k_head_stride = 0;
    std::int64_t v_token_stride = 0, v_head_stride = 0;
    std::int64_t out_token_stride = 0, out_head_stride = 0;
};

/// What a caller asks of a backward plan beyond the problem.
struct PackedBackwardOptions {
    /// The same bits each time, for the same pack, tensors and GPU model: every sum is added up in one order. It takes some waiting
    /// and shorter pieces of work; see docs/training.md. By either main loop; refused for packs with dfs_arrays, whose additions
    /// are known on the device alone.
    bool deterministic = false;
    PackedConfig config;  ///< fields that are not 0 are kept, the others chosen
};

/// What a backward plan will do, in numbers.
struct PackedBackwardInfo {
    PackedConfig config;
    std::int64_t rows = 0, keys = 0;
    std::int64_t visible_pairs = 0;  ///< of one head
    std::int64_t tiles = 0;          ///< key block x row tile steps of one query head
    std::int64_t partial_tiles = 0;  ///< of these, the ones that compare
    std::int64_t blocks = 0;         ///< key blocks of one KV head, those in several parts counted by parts
    std::int64_t list_bytes = 0;     ///< device memory of the tile lists
    /// fp32 sums of dQ, and of dK and dV of blocks in parts; two fp32 values a row and query head
    std::int64_t workspace_bytes = 0;
    double flops = 0;         ///< of visible pairs: 2.5 times the forward pass'
    bool dfs_arrays = false;  ///< as in PackedPlanInfo
    std::int32_t grid = 0;
    TuneMatch tuned = TuneMatch::none;  ///< where the configuration comes from
};

/// Tile lists for the gradients of one pack, made by Engine::plan_packed_backward; plain host data. Move-only. In flight on one
/// stream at a time.
class PackedBackwardPlan {
public:
    PackedBackwardPlan(PackedBackwardPlan&&) noexcept;
    PackedBackwardPlan& operator=(PackedBackwardPlan&&) noexcept;
    ~PackedBackwardPlan();

    const PackedProblem& problem() const noexcept;
    PackedBackwardInfo info() const;
    /// Canonical texts of its kernels, in the order in which they run.
    std::vector<std::string> kernel_keys() const;

    struct Impl;
    Impl& impl() noexcept { return *impl_; }
    const Impl& impl() const noexcept { return *impl_; }
    explicit PackedBackwardPlan(std::unique_ptr<Impl> impl);

private:
    std::unique_ptr<Impl> impl_;
};

/// Tensors of one backward call: the forward call's, the gradient of its output, and where the gradients go. Pointers and strides
/// are as in PackedTensors. Gradients are of sum(out * dout) + sum(lse * dlse); all of dq, dk and dv is written.
struct PackedGradients {
    const void* q = nullptr;      ///< [rows, Hq, head_dim]
    const void* k = nullptr;      ///< [keys, Hkv, head_dim]
    const void* v = nullptr;      ///< [keys, Hkv, head_dim_v]
    const void* out = nullptr;    ///< [rows, Hq, head_dim_v]
    const void* dout = nullptr;   ///< [rows, Hq, head_dim_v]
    const float* lse = nullptr;   ///< [Hq, rows]
    const float* dlse = nullptr;  ///< [Hq, rows]; null: the LSE is not used further
    void* dq = nullptr;           ///< [rows, Hq, head_dim]
    void* dk = nullptr;           ///< [keys, Hkv, head_dim]
    void* dv = nullptr;           ///< [keys, Hkv, head_dim_v]
    /// The forward call's, of packs with dfs_arrays.
    const std::int32_t *start_q = nullptr, *end_k = nullptr;
    std::int64_t q_token_stride = 0, q_head_stride = 0;
    std::int64_t k_token_stride = 0, k_head_stride = 0;
    std::int64_t v_token_stride = 0, v_head_stride = 0;
    std::int64_t out_token_stride = 0, out_head_stride = 0;
    std::int64_t dout_token_stride = 0, dout_head_stride = 0;
    std::int64_t dq_token_stride = 0, dq_head_stride = 0;
    std::int64_t dk_token_stride = 0, dk_head_stride = 0;
    std::int64_t dv_token_stride = 0, dv_head_stride = 0;
};

}  // namespace sapwood
