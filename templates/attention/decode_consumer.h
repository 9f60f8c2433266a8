// SPDX-License-Identifier: Apache-2.0
// The compute warps: each keeps the softmax state of 16 query rows in registers while the keys of its work item stream by. A warp
// looks only at chunks that some of its rows see, so siblings of one subtree walk root to leaf in one block without partial
// results.
#pragma once

#include "attention/decode_merge.h"
#include "attention/decode_producer.h"

namespace sapwood::kernel {

template <class Traits>
struct DecodeConsumer {
    using Products = typename Traits::template Products<Traits>;

    const abi::DecodeParams& params;
    const DecodeShared<Traits>& shared;
    RingPosition<Traits::kStages> at;
    Products rows;
    // Looked up when the item starts where there are registers to keep it, so that its end does not wait.
    static constexpr bool kTargetsEarly =
        (Traits::kMoveRegisters && !Traits::kFewRegisters) || (Traits::kWarps == 4 && Traits::kBlocks == 1);
    RowTargets<Traits> targets;
    u32 tiles = 0;

    SAPWOOD_DEVICE DecodeConsumer(const abi::DecodeParams& p, const DecodeShared<Traits>& s) : params(p), shared(s), rows(p, s) {}

    /// Of a stage that was read, and perhaps written, by other means than products.
    SAPWOOD_DEVICE void release() {
        rows.before_copies();
        rows.release(at.stage);
        at.advance();
    }

    SAPWOOD_DEVICE void begin_item() {
        const StageHeader* header = shared.header(at.stage);
        const abi::Item item = header->item;
        tiles = item.tiles;
        const RowBlocks<Traits> all(item.requests);
        const u32 warp = warp_id(), unit = warp / Traits::kUnitWarps;
        rows.parts = all.parts;
        rows.part = all.part_of(unit);
        rows.row_block = (unit - rows.part * all.blocks) * Traits::kUnitWarps + warp % Traits::kUnitWarps;
        if constexpr (Traits::KvElement::kScaled)
            rows.score = typename Traits::Score(params.scale_log2 * bits_f32(header->items), params.softcap_log2);
        if (lane_id() == 0) {  // last, where K and V are scaled, the factor of V
            shared.note(warp) = {item.request_begin, all.rows, header->kv_head, Traits::KvElement::kScaled ? header->merges : 0};
        }
        if constexpr (kTargetsEarly) targets.find(params, item.request_begin, all.rows, rows.row_block);
        if constexpr (Traits::kMask && !Traits::kMasksStaged) {
            SAPWOOD_UNROLL for (u32 h = 0; h < 2; ++h) rows.request[h] = targets.entry[h].request;
        }
        rows.take_query(at.stage);
        rows.state.clear();
    }

    SAPWOOD_DEVICE void run() {
        u32 finished = 0;
        rows.begin();
        for (;; ++finished) {
            shared.ring.wait_full(at);
            if (shared.header(at.stage)->kind == static_cast<u32>(abi::StageKind::stop)) break;
            begin_item();
            release();
            rows.attend_item(at, tiles);
            rows.state.reduce_sum();
            if (rows.parts > 1) {
                shared.ring.wait_full(at);
                // The ring has ordered this already, by way of the copy warps; said directly it costs little and a race checker
                // follows it.
                named_sync(kComputeBarrier, Traits::kComputeThreads);
                add_parts<Traits>(shared, at.stage, rows.state, rows.row_block, rows.part, rows.parts);
                release();
            }
            if (rows.part != 0) continue;
            warp_sync();  // lane 0 has written the note
            const ItemNote note = shared.note(warp_id());
            warp_sync();  // all lanes have read it before the next item's is written
            if constexpr (!kTargetsEarly) targets.find(params, note.request_begin, note.rows, rows.row_block);
            write_rows<Traits>(params, targets, note, rows.state, rows.row_block);
        }
        rows.end();
        const StageHeader* last = shared.header(at.stage);
        merge_partials<Traits>(params, finished, last->items, last->merges);
    }
};

template <class Config>
SAPWOOD_DEVICE void decode(const typename Config::Params& params) {
    using Traits = DecodeTraits<Config>;
    const DecodeShared<Traits> shared;
    if (thread_id() == 0) {
        shared.ring.init(DecodeProducer<Traits>::kFullArrivals, Traits::kComputeThreads);
        if constexpr (Traits::kValuesApart) shared.values.init(DecodeProducer<Traits>::kFullArrivals, Traits::kComputeThreads);
        mbarrier_init(shared.address + Traits::kStagger, Traits::kUnitWarps * 32);
    }
    const bool copies = warp_id() >= Traits::kWarps;
    DecodeProducer<Traits> producer(params, shared);
    if (copies) producer.look_up();  // travels while the barriers are made
    block_sync();
    if (copies) {
        if constexpr (Traits::kMoveRegisters) registers_release<Traits::kRegisters.copies>();
        producer.run();
    } else {
        if constexpr (Traits::kMoveRegisters) registers_take<Traits::kRegisters.compute>();
        DecodeConsumer<Traits>(params, shared).run();
    }
}

}  // namespace sapwood::kernel
