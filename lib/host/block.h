// SPDX-License-Identifier: Apache-2.0
// One CUDA block on one OS thread: its fibers, what they wait for, and who runs next. Everything is single-threaded here.
#pragma once

#include <atomic>
#include <bit>
#include <chrono>
#include <cstdint>
#include <memory>
#include <new>
#include <optional>
#include <string>
#include <vector>

#include "host/fiber.h"
#include "isa/host_runtime.h"
#include "jit/loaded_kernel.h"

namespace sapwood::host {

using kernel::HostBlock;
using kernel::HostEntry;
using kernel::HostWarp;
using kernel::HostWarpOp;
using kernel::kHostMaxThreads;
using kernel::kHostMaxWarps;
using kernel::kHostSharedStart;

/// What went wrong in a block: a line, and where every thread stood. Empty: it was given up because another block failed.
struct BlockFailure {
    std::string text, detail;
};

/// What blocks of one launch know of each other.
struct GridState {
    std::atomic<bool> stop{false};          // one has failed: those that wait for others give up
    std::atomic<std::uint32_t> workers{0};  // OS threads that run a block or are about to
    std::atomic<std::uint32_t> idle{0};     // of these, the ones whose block can only poll global memory
};

/// Reused for many blocks, one after another. Scheduling is two-level, a warp and a lane in it, because lanes of a warp meet all
/// the time: a collective costs one switch a lane, straight from fiber to fiber.
class Block final : private HostBlock {
public:
    Block();
    Block(const Block&) = delete;
    Block& operator=(const Block&) = delete;

    /// Runs block `index` to its end. Whatever the outcome, no fiber of it is left. Throws only when the host is out of something.
    /// The caller counts in `state.workers`.
    std::optional<BlockFailure> run(const HostEntry& entry, const void* params, const jit::LaunchShape& shape, std::uint32_t index,
                                    std::uint64_t seed, GridState& state);

private:
    struct Barrier {
        std::uint32_t expected, arrived;
        std::uint32_t waiting[kHostMaxWarps];  // lanes, by warp
    };
    struct AsyncOp {
        std::uint32_t shared;
        std::uint32_t bytes;  // kArrive: an arrival, not a copy
        const void* global;
    };
    struct AsyncQueue {
        std::vector<AsyncOp> ops;
        std::size_t next = 0;
        bool in_flight = false;
    };
    /// When asynchronous copies land: as late as can be, at random moments, or at once.
    enum class Landing : std::uint32_t { late, random, early };
    static constexpr std::uint32_t kArrive = ~0u;
    static const kernel::HostRuntime kRuntime;

    // --- the table that kernels call
    static Block& of(HostThread* t) { return static_cast<Block&>(*t->block); }
    static void meet(HostThread* t, const HostWarpOp* op);
    static void barrier(HostThread* t, std::uint32_t id, std::uint32_t threads);
    static void mbarrier_init(HostThread* t, std::uint32_t shared, std::uint32_t arrivals);
    static void mbarrier_arrive(HostThread* t, std::uint32_t shared);
    static bool mbarrier_try(HostThread* t, std::uint32_t shared, std::uint32_t parity);
    static void mbarrier_wait(HostThread* t, std::uint32_t shared, std::uint32_t parity);
    static void cp_async_16(HostThread* t, std::uint32_t shared, const void* global, std::uint32_t bytes);
    static void cp_async_4(HostThread* t, std::uint32_t shared, const void* global);
    static void cp_async_arrive(HostThread* t, std::uint32_t mbarrier);
    static void breathe(HostThread* t);
    static std::uint32_t poll(HostThread* t, const std::uint32_t* global);
    static void fail_from_kernel(HostThread* t, const char* what, kernel::u64 found, kernel::u64 limit);

    // --- scheduling (block.cpp)
    static void fiber_entry();
    void set_ready(std::uint32_t warp, std::uint32_t lanes) {
        warps_[warp].ready |= lanes;
        ready_warps_ |= 1u << warp;
    }
    void set_ready(HostThread& t) { set_ready(t.warp->index, 1u << t.lane); }
    void leave(HostThread& t);
    HostThread& choose_lane(HostWarp& warp, std::uint32_t at);
    HostThread& schedule(HostThread& t);
    bool end_of_waiting();
    bool poll_again();
    void progress() noexcept;
    void suspend(HostThread& t, HostThread& next);
    void blame(std::string text);
    [[noreturn]] void abandon(HostThread& t);  // after blame(), as a statement of its own: no string may live in the caller then
    void exit_thread(HostThread& t);
    [[noreturn, gnu::cold, gnu::noinline]] void refuse_meeting(HostThread& t, const HostWarpOp& op);
    std::uint32_t random() noexcept {  // xorshift64*
        rng_ ^= rng_ >> 12;
        rng_ ^= rng_ << 25;
        rng_ ^= rng_ >> 27;
        return static_cast<std::uint32_t>((rng_ * 0x2545f4914f6cdd1d) >> 32);
    }
    bool chance(std::uint32_t one_in) noexcept { return shuffled_ && random() % one_in == 0; }

    // --- shared memory (memory.cpp)
    void reserve_shared(std::uint32_t bytes);
    void poison_shared();
    bool guards_intact() const;
    std::uint64_t& mbarrier_word(HostThread& t, std::uint32_t shared, const char* what, bool initialised);
    bool mbarrier_done(HostThread& t, std::uint32_t shared, std::uint32_t parity);
    void arrive(std::uint64_t& word, std::uint32_t shared);
    void wake(std::uint32_t shared);
    bool land_some(bool one_group);
    void start_copy(std::uint32_t thread, const AsyncOp& op);
    void land(AsyncQueue& queue, std::uint32_t thread, bool one_group);

    // --- report.cpp
    std::string name(const HostThread& t) const;
    std::string place(const HostThread& t) const;
    std::string places() const;

    FiberRegion region_;
    MainFiber main_;
    std::vector<HostWarp> warps_;
    std::uint32_t warp_count_ = 0;
    std::uint32_t ready_warps_ = 0;          // superset of the warps with a ready lane
    std::uint32_t slow_warps_ = 0;           // a shuffled schedule starves these
    std::uint32_t live_ = 0;                 // fibers that have not exited
    std::uint32_t waiting_[kHostMaxWarps];   // lanes at an mbarrier
    std::uint32_t spinning_[kHostMaxWarps];  // of these, the ones that only tried
    std::uint32_t polling_[kHostMaxWarps];   // lanes that saw nothing new in global memory
    std::uint32_t idle_rounds_ = 0;
    bool idle_ = false;  // counted in grid_->idle
    std::chrono::steady_clock::time_point idle_since_;
    GridState* grid_ = nullptr;
    Barrier barriers_[16];

    std::vector<AsyncQueue> queues_;        // by thread
    std::vector<std::uint32_t> in_flight_;  // threads with a non-empty queue
    Landing landing_ = Landing::late;

    bool shuffled_ = false;
    bool draining_ = false;
    bool dirty_ = false;  // the last run was abandoned
    std::uint64_t rng_ = 1;
    const HostEntry* entry_ = nullptr;
    const void* params_ = nullptr;
    struct AlignedDelete {
        void operator()(std::uint8_t* p) const noexcept { ::operator delete (p, std::align_val_t{1024}); }
    };
    std::unique_ptr<std::uint8_t, AlignedDelete> allocation_;  // shared memory between its guards
    std::uint32_t shared_capacity_ = 0;
    std::optional<BlockFailure> failure_;
};

}  // namespace sapwood::host
