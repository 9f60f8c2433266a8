// SPDX-License-Identifier: Apache-2.0
// Which nodes share a work item: an exact dynamic programme over the depth-first order of the requests, in bytes.
//
// A *block* is a run of at most `capacity` neighbouring requests that one work item serves; it loads every node of a region of the
// forest that one of them sees. A *region* is what lies below a cut node (or the whole forest) down to the next cuts; a request
// that crosses a cut gets one partial result a region. All costs are in equivalent HBM bytes, for one KV head:
//
//   cost = sum over blocks (item_bytes + reread * bytes of nodes that an earlier block has loaded) + partials
//
// First reads from HBM are the same for every cover and left out. Starting a block at request i re-reads what i shares with i - 1
// inside the region, so the cost of a partition is a sum over its boundaries: a shortest path, found with a sliding-window minimum
// in linear time. A cut at node c is one more edge, from the first to the last request below c; it is worth looking at only where
// the re-reads that it can save exceed the partials that it must cost (the bound in cover.cpp), which keeps the whole linear in
// practice.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "plan/order.h"
#include "sapwood/decode.h"

namespace sapwood {

struct CostModel {
    double token_bytes = 0;      // K and V of one token
    double values_a_byte = 0.5;  // of these: arithmetic goes by values, loads by bytes
    double reread = 1 / 1.8;     // a byte from L2 against one from HBM: 3.0 / 5.5 TB/s
    double partial_bytes = 0;    // write and read of one request's partial rows and LSE, at twice their bytes, because they are
                                 // also waited for and added up: by their bytes alone FT7 16/1 and FT8 32/8 get plans that are 41
                                 // and 9 % slower
    double item_bytes = 8192;    // start and end of a work item: about 0.35 us of one SM's share of the bandwidth
    std::int32_t capacity = 1;   // requests a block
};

CostModel cost_model(const DecodeProblem& problem, const DecodeConfig& config);

struct Block {
    std::int32_t request_begin, request_end;  // in depth-first order
    std::int32_t top;                         // entry whose children start the region; -1 = the roots
    std::int32_t bottom;                      // entry that ends it for all of these requests (a cut node), -1 = each request's own
};

struct Cover {
    std::vector<Block> blocks;
    double cost = 0;
    std::int32_t cuts = 0;
};

Cover make_cover(const ForestOrder& order, const CostModel& model);

/// A cover written out, for comparing planners: which entries an item loads, for which requests (positions in depth-first order).
struct CoverItem {
    std::vector<std::int32_t> entries;
    std::vector<std::int32_t> requests;
};
std::vector<CoverItem> written_out(const ForestOrder& order, const Cover& cover);
/// The model's cost of any list of items.
double cost_of(const ForestOrder& order, const CostModel& model, std::span<const CoverItem> items);

/// Calls visit(entry) for each entry of a block, ancestors of the first request in no particular order.
template <class Visit>
void each_entry(const ForestOrder& order, const Block& block, Visit&& visit) {
    const std::int32_t last = block.bottom >= 0 ? block.bottom : order.request_entry[block.request_begin];
    for (std::int32_t e = last; e != block.top; e = order.entries[e].parent) visit(order.entries[e]);
    if (block.bottom >= 0) return;
    for (std::size_t e = static_cast<std::size_t>(last) + 1;
         e < order.entries.size() && order.entries[e].request_begin < block.request_end; ++e) {
        visit(order.entries[e]);
    }
}

/// The entries of a block in depth-first order.
void entries_of(const ForestOrder& order, const Block& block, std::vector<std::int32_t>& entries);

}  // namespace sapwood
