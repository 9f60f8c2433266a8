// SPDX-License-Identifier: Apache-2.0
#include "plan/backward_waits.h"

#include <algorithm>

#include "plan/first_free.h"

namespace sapwood {
namespace {

// In steps, measured on an H100. Of an item beside its steps: an empty pipeline, dK and dV, and if they are added up that.
constexpr double kBegin = 1.25, kEnd = 1.25, kEndOfPart = 2.75;
// From a step's end to its addition, and from there until the next may add to the same tile.
constexpr double kToAddition = 0.12, kAddition = 1.3;

}  // namespace

double BackwardWaits::makespan(const BackwardList& list, const RowLayout& layout) {
    constexpr std::int64_t kMostVisits = 1 << 13;
    cell_ = static_cast<std::int32_t>(1 + list.tiles * problem_.q_heads / kMostVisits);
    cells_ = static_cast<std::int32_t>(std::ssize(list.row_additions)) / cell_ + 1;
    added_.assign(static_cast<std::size_t>(cells_) * static_cast<std::size_t>(problem_.q_heads), 0);
    parts_.assign(list.slots.size() * static_cast<std::size_t>(problem_.kv_heads), 0);
    free_.assign(static_cast<std::size_t>(multiprocessors_), 0);
    heads_ = problem_.q_heads / problem_.kv_heads / layout.bundles;
    const std::int32_t all = problem_.kv_heads * layout.bundles;
    for (std::int32_t section = 0; section < all; section += layout.section) {
        for (const abi::KeyBlock& block : list.blocks) {
            if (block.tiles == 0) continue;
            for (std::int32_t head = section; head < section + layout.section; ++head) {
                double end = walk(list, block, head * heads_, free_.front() + kBegin);
                if (block.slot != abi::KeyBlock::kNoSlot) {
                    double& part = parts_[block.slot * static_cast<std::size_t>(problem_.kv_heads) +
                                          static_cast<std::size_t>(head / layout.bundles)];
                    end = part = std::max(end, part) + kEndOfPart;
                } else {
                    end += kEnd;
                }
                occupy_first(free_, end);
            }
        }
    }
    return *std::max_element(free_.begin(), free_.end()) * layout.slowdown;
}

/// Rows are walked at the same speed by all, so that who is behind another where their rows begin to be the same stays behind it.
double BackwardWaits::walk(const BackwardList& list, const abi::KeyBlock& block, std::int32_t first_head, double begin) {
    double at = begin, added = begin;  // the end of a step, and its addition, which is hidden behind the next step
    for (std::int32_t head = first_head; head < first_head + heads_; ++head) {
        double* const cells = added_.data() + static_cast<std::size_t>(head) * static_cast<std::size_t>(cells_);
        const abi::RowSpan* span = list.spans.data() + block.span_begin;
        for (unsigned done = 0; done < block.tiles; done += span++->tiles) {
            auto tile = static_cast<std::int32_t>(span->row_begin / static_cast<int>(abi::kRowTile));
            const std::int32_t end = tile + static_cast<std::int32_t>(span->tiles);
            while (tile < end) {
                const std::int32_t cell = tile / cell_, inside = tile - cell * cell_,
                                   others = std::min(end, (cell + 1) * cell_) - tile - 1;
                at = std::max(at + 1, added);
                added = std::max(at + kToAddition, cells[cell] + inside + kAddition);
                cells[cell] = added - inside;
                if (others > 0) at = std::max(at + others, added + others - 1), added += others;
                tile += 1 + others;
            }
        }
    }
    return std::max(at, added);
}

}  // namespace sapwood
