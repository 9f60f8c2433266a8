// SPDX-License-Identifier: Apache-2.0
// Depth-first order of a forest: the requests below any node are then neighbours, and so is everything the planner groups.
#pragma once

#include <cstdint>
#include <vector>

#include "sapwood/forest.h"

namespace sapwood {

struct ForestOrder {
    struct Entry {
        std::int32_t node;           // id in the forest
        std::int32_t parent;         // entry index, -1 for a root
        std::int32_t request_begin;  // requests at or below it: [request_begin, request_end) in depth-first order
        std::int32_t request_end;
        std::int64_t depth_begin;  // tokens of all ancestors
        std::int64_t tokens;
        std::int64_t padded_begin;  // the same, every length rounded up to whole chunks
        std::int64_t padded;
        std::int64_t kv_begin;
        bool side_by_side;      // one draft's path: blocks of its rows load it at the same time
        const DraftMask* mask;  // a draft whose requests, in the order of its rows, see parts of it; else null
    };
    std::vector<Entry> entries;               // pre-order, only nodes with requests at or below
    std::vector<std::int32_t> requests;       // ids, depth first; those with at least one token on their path
    std::vector<std::int32_t> request_entry;  // entry that the request is attached to
    std::vector<std::int64_t> shared;         // padded tokens shared with the request before it; [0] = 0
    std::vector<std::int32_t> empty;          // requests that see no token
    std::int64_t used_tokens = 0;             // over entries
    std::int64_t path_tokens = 0;             // over requests
    std::int32_t widest = 0;                  // most requests that share one token
    std::int32_t mask_columns = 0;            // most tokens of a draft with a mask; 0 = there is none
    bool masks_on_device = false;
};

/// Refers to the forest's drafts. Throws kInvalidForest if some masks are on the device and some are not.
ForestOrder order_of(const Forest& forest);

}  // namespace sapwood
