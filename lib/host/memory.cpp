// SPDX-License-Identifier: Apache-2.0
// Shared memory of a block, mbarriers in it, and asynchronous copies on their way to it.
#include <algorithm>
#include <cstring>
#include <new>

#include "host/block.h"

#if defined(SAPWOOD_HOST_ASAN)
#include <sanitizer/asan_interface.h>
#endif

namespace sapwood::host {
namespace {

constexpr std::uint32_t kGuard = kHostSharedStart;  // bytes before and behind
constexpr std::uint8_t kPoison = 0xff;              // NaN in every floating-point type

// An mbarrier's 64 bits: pending and expected arrivals, the parity of the current phase, and a mark that init leaves.
constexpr std::uint64_t kCount = (1u << 20) - 1;
constexpr int kExpectedShift = 20, kPhaseShift = 40, kMarkShift = 41;
constexpr std::uint64_t kMark = 0x2b5a11;

}  // namespace

void Block::reserve_shared(std::uint32_t bytes) {
    if (!allocation_ || shared_capacity_ < bytes) {
        allocation_.reset();
        allocation_.reset(static_cast<std::uint8_t*>(::operator new (std::size_t{bytes} + 2 * kGuard, std::align_val_t{1024})));
        shared_capacity_ = bytes;
    }
    shared = allocation_.get();
    shared_end = kHostSharedStart + bytes;
}

void Block::poison_shared() {
#if defined(SAPWOOD_HOST_ASAN)
    __asan_unpoison_memory_region(shared, shared_capacity_ + 2 * kGuard);
#endif
    std::memset(shared, kPoison, shared_end + kGuard);
#if defined(SAPWOOD_HOST_ASAN)  // plain pointers of the kernel are checked, too
    __asan_poison_memory_region(shared, kGuard);
    __asan_poison_memory_region(shared + shared_end, shared_capacity_ + 2 * kGuard - shared_end);
#endif
}

bool Block::guards_intact() const {
#if defined(SAPWOOD_HOST_ASAN)
    return true;
#else
    const auto intact = [](std::uint8_t byte) { return byte == kPoison; };
    return std::all_of(shared, shared + kGuard, intact) && std::all_of(shared + shared_end, shared + shared_end + kGuard, intact);
#endif
}

// --- mbarriers -----------------------------------------------------------------------------------------------------------

std::uint64_t& Block::mbarrier_word(HostThread& t, std::uint32_t address, const char* what, bool initialised) {
    if (address < kHostSharedStart || address > shared_end || shared_end - address < 8 || address % 8 != 0) {
        blame(name(t) + ": " + what + " at shared address " + std::to_string(address) + ": not 8 aligned bytes of " +
              std::to_string(kHostSharedStart) + ".." + std::to_string(shared_end));
        abandon(t);
    }
    auto& word = *reinterpret_cast<std::uint64_t*>(shared + address);
    if (initialised && word >> kMarkShift != kMark) {
        blame(name(t) + ": " + what + " at shared address " + std::to_string(address) + ", where no mbarrier was initialised");
        abandon(t);
    }
    return word;
}

void Block::mbarrier_init(HostThread* t, std::uint32_t address, std::uint32_t arrivals) {
    Block& b = of(t);
    std::uint64_t& word = b.mbarrier_word(*t, address, "mbarrier_init", false);
    if (arrivals == 0 || arrivals > kCount) {
        b.blame(b.name(*t) + ": mbarrier_init with " + std::to_string(arrivals) + " arrivals");
        b.abandon(*t);
    }
    word = kMark << kMarkShift | std::uint64_t{arrivals} << kExpectedShift | arrivals;
}

void Block::arrive(std::uint64_t& word, std::uint32_t address) {
    if ((--word & kCount) != 0) return;
    word ^= std::uint64_t{1} << kPhaseShift;
    word |= word >> kExpectedShift & kCount;
    progress();
    wake(address);
}

void Block::mbarrier_arrive(HostThread* t, std::uint32_t address) {
    Block& b = of(t);
    b.arrive(b.mbarrier_word(*t, address, "mbarrier_arrive", true), address);
}

/// Those who wait there look again themselves, as a GPU's threads would: who comes two phases late waits forever there and here.
void Block::wake(std::uint32_t address) {
    for (std::uint32_t w = 0; w < warp_count_; w++) {
        std::uint32_t lanes = 0;
        for (std::uint32_t rest = waiting_[w]; rest != 0; rest &= rest - 1) {
            const auto lane = static_cast<std::uint32_t>(std::countr_zero(rest));
            if (warps_[w].threads[lane].wait_shared == address) lanes |= 1u << lane;
        }
        if (lanes == 0) continue;
        waiting_[w] &= ~lanes;
        spinning_[w] &= ~lanes;
        set_ready(w, lanes);
    }
}

bool Block::mbarrier_done(HostThread& t, std::uint32_t address, std::uint32_t parity) {
    const std::uint64_t word = mbarrier_word(t, address, "mbarrier_wait", true);
    return (word >> kPhaseShift & 1) != (parity & 1);
}

void Block::mbarrier_wait(HostThread* t, std::uint32_t address, std::uint32_t parity) {
    Block& b = of(t);
    while (!b.mbarrier_done(*t, address, parity)) {
        t->wait_shared = address;
        t->wait_parity = parity;
        b.waiting_[t->warp->index] |= 1u << t->lane;
        b.leave(*t);
    }
}

bool Block::mbarrier_try(HostThread* t, std::uint32_t address, std::uint32_t parity) {
    Block& b = of(t);
    if (b.mbarrier_done(*t, address, parity)) return true;
    t->wait_shared = address;
    t->wait_parity = parity;
    b.waiting_[t->warp->index] |= 1u << t->lane;
    b.spinning_[t->warp->index] |= 1u << t->lane;
    b.leave(*t);
    return b.mbarrier_done(*t, address, parity);
}

// --- asynchronous copies -------------------------------------------------------------------------------------------------

void Block::cp_async_16(HostThread* t, std::uint32_t address, const void* global, std::uint32_t bytes) {
    Block& b = of(t);
    if (address < kHostSharedStart || address > b.shared_end || b.shared_end - address < 16 || address % 16 != 0) {
        b.blame(b.name(*t) + ": cp_async_16 to shared address " + std::to_string(address) + ": not 16 aligned bytes of " +
                std::to_string(kHostSharedStart) + ".." + std::to_string(b.shared_end));
        b.abandon(*t);
    }
    if (bytes != 0 && bytes != 16) {
        b.blame(b.name(*t) + ": cp_async_16 of " + std::to_string(bytes) + " bytes: 0 or 16");
        b.abandon(*t);
    }
    b.start_copy(t->thread, {address, bytes, global});
}

void Block::cp_async_4(HostThread* t, std::uint32_t address, const void* global) {
    Block& b = of(t);
    if (address < kHostSharedStart || address > b.shared_end || b.shared_end - address < 4 || address % 4 != 0) {
        b.blame(b.name(*t) + ": cp_async_4 to shared address " + std::to_string(address) + ": not 4 aligned bytes of " +
                std::to_string(kHostSharedStart) + ".." + std::to_string(b.shared_end));
        b.abandon(*t);
    }
    b.start_copy(t->thread, {address, 4, global});
}

void Block::start_copy(std::uint32_t thread, const AsyncOp& op) {
    AsyncQueue& queue = queues_[thread];
    queue.ops.push_back(op);
    if (!queue.in_flight) {
        queue.in_flight = true;
        in_flight_.push_back(thread);
    }
    if (landing_ == Landing::early) land(queue, thread, false);
}

void Block::cp_async_arrive(HostThread* t, std::uint32_t address) {
    Block& b = of(t);
    b.mbarrier_word(*t, address, "cp_async_arrive", true);
    AsyncQueue& queue = b.queues_[t->thread];
    queue.ops.push_back({address, kArrive, nullptr});
    if (!queue.in_flight) {
        queue.in_flight = true;
        b.in_flight_.push_back(t->thread);
    }
    if (b.landing_ == Landing::early && b.chance(2)) b.land(queue, t->thread, false);
}

/// Performs a thread's oldest operations: up to and with an arrival, or all of them.
void Block::land(AsyncQueue& queue, std::uint32_t thread, bool one_group) {
    while (queue.next < queue.ops.size()) {
        const AsyncOp op = queue.ops[queue.next++];
        if (op.bytes == kArrive) {
            auto& word = *reinterpret_cast<std::uint64_t*>(shared + op.shared);
            if (word >> kMarkShift == kMark) arrive(word, op.shared);  // else overwritten since: whoever waits there will say so
            if (one_group) break;
        } else if (op.bytes == 0) {
            std::memset(shared + op.shared, 0, 16);
        } else {
            std::memcpy(shared + op.shared, op.global, op.bytes);
        }
    }
    if (queue.next < queue.ops.size()) return;
    queue.ops.clear();
    queue.next = 0;
    queue.in_flight = false;
    in_flight_.erase(std::find(in_flight_.begin(), in_flight_.end(), thread));
}

/// Lands for one thread. Always true: somebody may be ready now, or there is less in flight.
bool Block::land_some(bool one_group) {
    const std::uint32_t thread = in_flight_[shuffled_ ? random() % in_flight_.size() : 0];
    land(queues_[thread], thread, one_group);
    return true;
}

}  // namespace sapwood::host
