// SPDX-License-Identifier: Apache-2.0
// What a plan for a pack with arrays knows of its blocks before it has seen the arrays: the tile lists themselves are made on the
// device, for every launch.
#pragma once

#include <cstdint>
#include <vector>

#include "packed_abi.h"
#include "plan/backward_list.h"
#include "sapwood/packed.h"

namespace sapwood {

struct ArrayList {
    /// Spans that a block has room for at most: depth-first trees need about three an ancestor that lies by itself. A list that
    /// needs more ends with one span of all that is left, compared pair by pair.
    static constexpr std::int64_t kMostSpans = 128;

    bool present = false;
    std::vector<abi::ArrayBlock> blocks;  // beside the list's blocks
    std::int64_t spans = 0;               // room, of all blocks
    std::int64_t bounds = 0;              // of end_k, or of start_q in a backward pass

    /// `list` is that of the mask without arrays, which bounds what the arrays leave: its blocks and their order stay, its spans
    /// make way for room.
    void build(const Pack& pack, PackedList& list);
    /// The same of a backward pass, whose blocks' parts keep the row tiles that they are to walk.
    void build(const Pack& pack, BackwardList& list);

    std::int64_t bytes() const;
};

}  // namespace sapwood
