// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>

#include "sapwood/forest.h"
#include "sapwood/types.h"

namespace sapwood {

/// Shapes of a decode call: one query token a request, all of its keys on one root path of a forest.
struct DecodeProblem {
    std::int32_t q_heads = 0;     ///< Hq
    std::int32_t kv_heads = 0;    ///< Hkv; Hq % Hkv == 0, the GQA group Hq / Hkv is 1..64. Query head h reads KV head h / group
    std::int32_t head_dim = 0;    ///< of Q and K: 64, 96, 128, 192, 256
    std::int32_t head_dim_v = 0;  ///< of V and O; 0 = head_dim
    DType dtype = DType::bf16;    ///< of Q and O, and of K and V unless kv_dtype says otherwise
    /// Of K and V. e4m3: half the bytes; multiplied by mma.sync alone (Mainloop::mma). Key = k_scale * element, value likewise.
    KvDType kv_dtype = KvDType::as_q;
    std::int32_t page_size = 0;  ///< 0 = contiguous positions; else 1, 16, 32, 64 or 128 tokens a page
    float scale = 0;             ///< of the fp32 scores; 0 = 1 / sqrt(head_dim)
    float softcap = 0;           ///< 0 = none; else score = softcap * tanh(score / softcap), after the scale
    /// Drafts with masks (Forest::add_draft) can be attended. Set by itself where the forest has one when the plan is made; set it
    /// for a plan that is to take one over later.
    bool mask = false;
};

/// Who multiplies in a decode kernel: single warps (mma.sync, every SM), or warpgroups (wgmma, sm_90a and the host target; head
/// dims 64 and 128, K and V of Q's type).
enum class Mainloop : std::uint8_t { choose = 0, mma = 1, wgmma = 2 };
const char* mainloop_name(Mainloop mainloop) noexcept;  ///< "mma", "wgmma"; "choose"

/// Tile sizes of the kernel: named values, never an index. 0 = chosen by the planner.
struct DecodeConfig {
    Mainloop mainloop = Mainloop::choose;
    std::int32_t warps = 0;      ///< compute warps a block; block_q = 16 * warps query rows
    std::int32_t producers = 0;  ///< copy warps a block
    std::int32_t block_kv = 0;   ///< keys a stage: 32, 64 or 128
    std::int32_t stages = 0;     ///< ring depth
    std::int32_t blocks = 0;     ///< resident blocks an SM
    std::int32_t split = 0;      ///< work items a block aimed at by the splitter
    std::int32_t rows =
        0;  ///< most query rows that share a work item, up to 16 * warps; fewer are easier to balance, more re-read less

    std::string to_string() const;
};

/// Where the configuration of a plan comes from.
enum class TuneMatch : std::uint8_t {
    none,         ///< the database was not asked: it is off, or the caller fixed the kernel
    exact,        ///< a record of this GPU and bucket of sizes
    near_bucket,  ///< of this GPU, a neighbouring bucket
    other_gpu,    ///< of another GPU with this SM version
    fallback,     ///< no record: the planner's choice
};
const char* tune_match_name(TuneMatch match) noexcept;

/// What a plan will do, in numbers; all counts are per call. After an update that only patched lengths, items and flops are those
/// of the last full plan and each grown node's bytes are counted once.
struct DecodePlanInfo {
    DecodeConfig config;
    std::int64_t requests = 0;
    std::int64_t items = 0;          ///< work items a KV head
    std::int64_t partial_rows = 0;   ///< partial results, in (request, KV head) rows of `group` query rows
    std::int64_t hbm_bytes = 0;      ///< Q + O + every KV token on some request's path, once: no kernel moves less
    std::int64_t kv_load_bytes = 0;  ///< KV bytes the blocks load, re-reads (from L2) included
    std::int64_t partial_bytes = 0;  ///< partial results and their LSE, written and read once
    double flops = 0;                ///< 2 * (Dqk + Dv) * Hq * path tokens
    double model_cost = 0;           ///< the planner's cost, in equivalent HBM bytes
    double model_us = 0;             ///< microseconds that the planner expects on a device of this SM count at 3.0 TB/s
    std::int32_t grid = 0;
    TuneMatch tuned = TuneMatch::none;
};

/// A work list for one forest: which block attends which requests over which tokens. Made by Engine::plan_decode; plain host data.
/// Move-only. A plan may be in flight on one stream at a time (its partial results and counters are its own).
class DecodePlan {
public:
    DecodePlan(DecodePlan&&) noexcept;
    DecodePlan& operator=(DecodePlan&&) noexcept;
    ~DecodePlan();

    /// Takes over the present state of `forest` (the one it was planned from, or a changed copy). Lengths that grew inside the
    /// present work list are patched in place; anything else is planned anew, into the same fixed capacity, so that a captured CUDA
    /// graph stays valid: call Engine::upload before the next replay. Throws Error{kCapacityExceeded} and leaves the plan as it was
    /// if the capacity (DecodeLimits at planning) is too small.
    void update(const Forest& forest);

    const DecodeProblem& problem() const noexcept;
    DecodePlanInfo info() const;
    std::string kernel_key() const;  ///< canonical text of the kernel this plan runs
    std::string to_string(int max_items = 8) const;

    struct Impl;
    Impl& impl() noexcept { return *impl_; }
    const Impl& impl() const noexcept { return *impl_; }
    explicit DecodePlan(std::unique_ptr<Impl> impl);

private:
    std::unique_ptr<Impl> impl_;
};

/// Room that a plan keeps for growth; 0 = twice what the forest needs now, and never less than a small minimum.
struct DecodeLimits {
    std::int64_t max_requests = 0;
    std::int64_t max_tiles = 0;  ///< KV tiles of block_kv tokens over all work items
    std::int64_t max_items = 0;
    std::int64_t max_draft_tokens = 0;  ///< of one draft; 0 = the next power of two from the longest now, at least 64
};

/// Tensors of one call. Device pointers on a GPU engine, host pointers on a host engine; K, V, Q and out 16-byte aligned.
/// Strides are in elements (bytes, of e4m3 K and V); 0 = densely packed NHD ([tokens, heads, dim]; [requests, heads, dim] for q and
/// out). The last dimension is contiguous. Any two strides that keep 16-byte alignment are legal, so HND pools work too. K and V of
/// every token on some request's path must be finite: requests that share a work item share products, in which the keys that one
/// does not see have weight 0, and 0 * Inf is NaN. Slots that no token owns may hold anything.
struct DecodeTensors {
    const void* q = nullptr;                   ///< [requests, Hq, head_dim]
    const void* k = nullptr;                   ///< [rows, Hkv, head_dim]
    const void* v = nullptr;                   ///< [rows, Hkv, head_dim_v]
    void* out = nullptr;                       ///< [requests, Hq, head_dim_v]
    float* lse = nullptr;                      ///< optional [requests, Hq] fp32, natural logarithm; -inf for an empty path
    const std::int32_t* page_table = nullptr;  ///< required iff page_size > 0
    /// Required iff the drafts' masks are on the device (DraftMask::on_device): [requests, mask_row_words], packed like
    /// DraftMask::from_bits; row r is the query row r's, whatever draft it belongs to.
    const std::uint32_t* mask = nullptr;
    std::int64_t mask_row_words = 0;  ///< 0 = as many as the longest draft of the plan has
    /// Of e4m3 K and V: [kv_heads] fp32, finite and above 0, read at every launch: a captured graph follows what they hold.
    /// Null: 1.
    const float* k_scale = nullptr;
    const float* v_scale = nullptr;
    std::int64_t q_request_stride = 0, q_head_stride = 0;
    std::int64_t k_token_stride = 0, k_head_stride = 0;
    std::int64_t v_token_stride = 0, v_head_stride = 0;
    std::int64_t out_request_stride = 0, out_head_stride = 0;
};

}  // namespace sapwood
