// SPDX-License-Identifier: Apache-2.0
// Where the threads of a block stand, for errors.
#include "host/block.h"

namespace sapwood::host {

std::string Block::name(const HostThread& t) const {
    return "thread " + std::to_string(t.thread) + " (warp " + std::to_string(t.thread / 32) + ", lane " + std::to_string(t.lane) +
           ") of block " + std::to_string(block);
}

std::string Block::place(const HostThread& t) const {
    const HostWarp& warp = *t.warp;
    const std::uint32_t bit = 1u << t.lane;
    if (warp.exited & bit) return "exited";
    if (warp.arrived & bit) return std::string("wait for their warp at ") + warp.op->name;
    for (std::uint32_t id = 0; id < 16; id++) {
        const Barrier& barrier = barriers_[id];
        if (!(barrier.waiting[warp.index] & bit)) continue;
        return "wait at " + (id == 0 ? std::string("block_sync") : "named_sync(" + std::to_string(id) + ")") + ", " +
               std::to_string(barrier.arrived) + " of " + std::to_string(barrier.expected) + " there";
    }
    if (waiting_[warp.index] & bit) {
        const std::uint64_t word = *reinterpret_cast<const std::uint64_t*>(shared + t.wait_shared);
        return "wait at mbarrier_wait(shared " + std::to_string(t.wait_shared) + ", parity " + std::to_string(t.wait_parity) +
               "), arrivals missing " + std::to_string(word & 0xfffff);
    }
    if (polling_[warp.index] & bit) return "wait for other blocks at load_acquire";
    return "can run";
}

/// Neighbours who do the same are named together: "threads 0-31 wait at block_sync, 32 of 64 there; threads 32-63 exited".
std::string Block::places() const {
    std::string all;
    for (std::uint32_t first = 0; first < threads;) {
        const std::string where = place(region_.threads()[first]);
        std::uint32_t last = first;
        while (last + 1 < threads && place(region_.threads()[last + 1]) == where) last++;
        if (!all.empty()) all += "; ";
        all += first == last ? "thread " + std::to_string(first) : "threads " + std::to_string(first) + "-" + std::to_string(last);
        all += " " + where;
        first = last + 1;
    }
    return all;
}

}  // namespace sapwood::host
