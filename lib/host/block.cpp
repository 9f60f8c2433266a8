// SPDX-License-Identifier: Apache-2.0
#include "host/block.h"

#include <algorithm>
#include <exception>
#include <thread>
#include <utility>

#include "base/error.h"

namespace sapwood::host {
namespace {

constexpr std::uint32_t kAllLanes = ~0u;
/// Rounds in which nobody can do more than try an mbarrier again, before that counts as waiting forever.
constexpr std::uint32_t kIdleRounds = 10'000;
/// All blocks that run must have been able only to poll for so long; one that was about to see something new may have been
/// preempted.
constexpr std::chrono::seconds kIdleTime{5};
constexpr std::size_t kLine = 600;  // of places in an error's text; all of them are in its detail

std::uint64_t mix(std::uint64_t x) {  // splitmix64: neighbouring seeds give unrelated schedules
    x += 0x9e3779b97f4a7c15;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9;
    x = (x ^ (x >> 27)) * 0x94d049bb133111eb;
    return x ^ (x >> 31);
}

bool has_wide_vectors() {
#if defined(__x86_64__)
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#else
    return false;
#endif
}

}  // namespace

const kernel::HostRuntime Block::kRuntime = {
    .meet = meet,
    .barrier = barrier,
    .mbarrier_init = mbarrier_init,
    .mbarrier_arrive = mbarrier_arrive,
    .mbarrier_try = mbarrier_try,
    .mbarrier_wait = mbarrier_wait,
    .cp_async_16 = cp_async_16,
    .cp_async_4 = cp_async_4,
    .cp_async_arrive = cp_async_arrive,
    .breathe = breathe,
    .poll = poll,
    .fail = fail_from_kernel,
};

Block::Block() : HostBlock{}, main_{}, warps_(kHostMaxWarps), queues_(kHostMaxThreads) {
    main_.thread = ~0u;
    runtime = &kRuntime;
    wide = has_wide_vectors();
}

std::optional<BlockFailure> Block::run(const HostEntry& entry, const void* params, const jit::LaunchShape& shape,
                                       std::uint32_t index, std::uint64_t seed, GridState& state) {
    entry_ = &entry;
    params_ = params;
    grid_ = &state;
    block = index;
    grid = shape.grid;
    threads = shape.block;
    warp_count_ = threads / 32;
    reserve_shared(shape.shared_bytes);
    poison_shared();

    shuffled_ = seed != 0;
    rng_ = mix(mix(seed) ^ index) | 1;
    landing_ = shuffled_ ? static_cast<Landing>(random() % 3) : Landing::late;
    slow_warps_ = shuffled_ ? random() & random() : 0;
    for (Barrier& b : barriers_) b = {};
    for (std::uint32_t w = 0; w < warp_count_; w++) {
        HostWarp& warp = warps_[w];
        warp.threads = region_.threads() + w * 32;
        warp.block = this;
        warp.op = nullptr;
        warp.index = w;
        warp.arrived = warp.exited = 0;
        warp.ready = kAllLanes;
        waiting_[w] = spinning_[w] = polling_[w] = 0;
    }
    for (std::uint32_t i = 0; i < threads; i++) {
        region_.prepare(i, fiber_entry, dirty_);
        HostThread& t = region_.threads()[i];
        t.warp = &warps_[i / 32];
        t.block = this;
        t.thread = i;
        t.lane = i % 32;
        t.polled = nullptr;
    }
    for (std::uint32_t i : in_flight_) {
        queues_[i].ops.clear();
        queues_[i].next = 0;
        queues_[i].in_flight = false;
    }
    in_flight_.clear();
    ready_warps_ = warp_count_ == 32 ? ~0u : (1u << warp_count_) - 1;
    live_ = threads;
    idle_rounds_ = 0;
    failure_.reset();

    main_.lane = 31;  // round robin begins after it
    main_.warp = &warps_[warp_count_ - 1];
    enter_main(main_);
    switch_fiber(main_, schedule(main_));
    progress();  // no longer idle, if it was

    dirty_ = failure_.has_value();
#if defined(SAPWOOD_HOST_ASAN)
    if (dirty_) {  // each suspended fiber frees its fake stack: that can only be done on its own stack
        draining_ = true;
        for (std::uint32_t i = 0; i < threads; i++) {
            const HostThread& t = region_.threads()[i];
            if (t.sanitizer != nullptr) switch_fiber(main_, region_.threads()[i]);
        }
        draining_ = false;
    }
#endif
    if (!failure_ && !guards_intact()) {
        failure_ = BlockFailure{"block " + std::to_string(block) + " wrote outside its " + std::to_string(shape.shared_bytes) +
                                    " bytes of dynamic shared memory",
                                ""};
    }
    return failure_;
}

// --- who runs next -----------------------------------------------------------------------------------------------------

/// The first bit of `set` at or after `from`, wrapping around.
static std::uint32_t next_bit(std::uint32_t set, std::uint32_t from) {
    return (static_cast<std::uint32_t>(std::countr_zero(std::rotr(set, static_cast<int>(from & 31)))) + from) & 31;
}

/// `at`: the lane to begin with.
inline HostThread& Block::choose_lane(HostWarp& warp, std::uint32_t at) {
    const std::uint32_t lane = next_bit(warp.ready, at);
    warp.ready &= ~(1u << lane);
    return warp.threads[lane];
}

inline void Block::suspend(HostThread& t, HostThread& next) {
    if (&next == &t) return;
    switch_fiber(t, next);
#if defined(SAPWOOD_HOST_ASAN)
    if (draining_) leave_fiber(t, main_);
#endif
}

/// Gives way to another fiber; `t` has been put where somebody will find it, or is ready.
void Block::leave(HostThread& t) {
    HostWarp& warp = *t.warp;
    const std::uint32_t dice = shuffled_ ? random() : (t.lane + 1) << 8 | 1;
    if (warp.ready != 0 && dice % 32 != 0) [[likely]] {  // the warp's own lanes first: that is what makes collectives cheap
        suspend(t, choose_lane(warp, dice >> 8));
    } else {
        suspend(t, schedule(t));
    }
}

/// A ready fiber of any warp; when there is none and never will be, the main fiber.
HostThread& Block::schedule(HostThread& t) {
    if (landing_ == Landing::random && !in_flight_.empty() && chance(4)) land_some(false);
    for (;;) {
        while (ready_warps_ != 0) {
            std::uint32_t candidates = ready_warps_ & ~slow_warps_;
            if (candidates == 0 || chance(16)) candidates = ready_warps_;
            const std::uint32_t w = next_bit(candidates, shuffled_ ? random() : t.warp->index + 1);
            if (warps_[w].ready != 0) {
                const std::uint32_t after = w == t.warp->index ? t.lane + 1 : 0;
                return choose_lane(warps_[w], shuffled_ ? random() : after);
            }
            ready_warps_ &= ~(1u << w);
        }
        if (!end_of_waiting()) return main_;
    }
}

/// Nobody is ready: lands what is in flight, or lets the spinning ones try again. False when the block is over or stuck.
bool Block::end_of_waiting() {
    if (live_ == 0) return false;
    if (!in_flight_.empty()) {
        progress();
        return land_some(true);
    }
    if (poll_again()) return true;
    if (failure_) return false;
    std::string where = places();
    blame("block " + std::to_string(block) + " of " + std::to_string(grid) +
          " cannot go on: " + (where.size() <= kLine ? where : where.substr(0, kLine) + " ..."));
    return false;
}

/// Makes those ready who try an mbarrier or global memory again and again. False if there are none, or when that leads nowhere:
/// nobody in this block can do anything else, and neither can any other block that runs.
bool Block::poll_again() {
    std::uint32_t anybody = 0, outside = 0;
    for (std::uint32_t w = 0; w < warp_count_; w++) {
        anybody |= spinning_[w] | polling_[w];
        outside |= polling_[w];
    }
    if (anybody == 0) return false;
    if (outside != 0) {
        if (grid_->stop) {
            failure_ = BlockFailure{};
            return false;
        }
        if (!idle_) {
            idle_ = true;
            grid_->idle++;
            idle_since_ = std::chrono::steady_clock::now();
        }
        if (grid_->workers > 1) {
            if (grid_->idle < grid_->workers) {
                idle_since_ = std::chrono::steady_clock::now();
            } else if (std::chrono::steady_clock::now() - idle_since_ > kIdleTime) {
                return false;
            }
            idle_rounds_ < 100 ? std::this_thread::yield() : std::this_thread::sleep_for(std::chrono::microseconds(50));
            idle_rounds_ = std::min(idle_rounds_, kIdleRounds - 2);
        }
    }
    if (++idle_rounds_ >= kIdleRounds) return false;
    for (std::uint32_t w = 0; w < warp_count_; w++) {
        if ((spinning_[w] | polling_[w]) == 0) continue;
        set_ready(w, spinning_[w] | polling_[w]);
        waiting_[w] &= ~spinning_[w];
        spinning_[w] = polling_[w] = 0;
    }
    return true;
}

void Block::progress() noexcept {
    idle_rounds_ = 0;
    if (!idle_) return;
    idle_ = false;
    grid_->idle--;
}

/// A value that is still what this thread saw last lets every other fiber go first, and other OS threads when there is none.
std::uint32_t Block::poll(HostThread* t, const std::uint32_t* global) {
    Block& b = of(t);
    breathe(t);
    std::uint32_t value = __atomic_load_n(global, __ATOMIC_ACQUIRE);
    if (t->polled == global && t->polled_value == value) {
        b.polling_[t->warp->index] |= 1u << t->lane;
        b.leave(*t);
        value = __atomic_load_n(global, __ATOMIC_ACQUIRE);
        if (value != t->polled_value) b.progress();
    }
    t->polled = global;
    t->polled_value = value;
    return value;
}

void Block::breathe(HostThread* t) {
    Block& b = of(t);
    if (!b.chance(2)) return;
    b.set_ready(*t);
    b.suspend(*t, b.schedule(*t));
}

// --- beginning and end of a fiber ----------------------------------------------------------------------------------------

void Block::fiber_entry() {
    HostThread* t = kernel::host_self();
    Block& b = of(t);
    enter_fiber(b.main_);
    try {
        b.entry_->run(b.params_);
    } catch (const std::exception& e) {  // the executor itself out of memory: templates throw nothing
        if (!b.failure_) b.failure_ = BlockFailure{b.name(*t) + ": " + e.what(), ""};
    }
    if (b.failure_) leave_fiber(*t, b.main_);
    b.exit_thread(*t);
    HostThread& next = b.schedule(*t);
    leave_fiber(*t, next);
}

void Block::exit_thread(HostThread& t) {
    HostWarp& warp = *t.warp;
    if (warp.arrived != 0) {
        blame(name(t) + " exits while other lanes of its warp wait for it at " + warp.op->name);
        abandon(t);
    }
    warp.exited |= 1u << t.lane;
    live_--;
}

void Block::blame(std::string text) {
    if (!failure_) failure_ = BlockFailure{std::move(text), places()};
}

/// Leaves every fiber where it stands. They own nothing: templates have no destructors and no allocation.
void Block::abandon(HostThread& t) {
    switch_fiber(t, main_);
    leave_fiber(t, main_);  // drained
}

void Block::fail_from_kernel(HostThread* t, const char* what, kernel::u64 found, kernel::u64 limit) {
    Block& b = of(t);
    b.blame(b.name(*t) + ": " + what + " (" + std::to_string(found) + ", limit " + std::to_string(limit) + ")");
    b.abandon(*t);
}

// --- meeting points ------------------------------------------------------------------------------------------------------

void Block::refuse_meeting(HostThread& t, const HostWarpOp& op) {
    const HostWarp& warp = *t.warp;
    blame(name(t) + " calls " + op.name +
          (warp.exited != 0 ? " after other lanes of its warp have exited"
                            : std::string(" while other lanes of its warp wait at ") + warp.op->name));
    abandon(t);
}

/// The hot path: 31 lanes go through the first half and a switch, the 32nd does the work.
void Block::meet(HostThread* t, const HostWarpOp* op) {
    HostWarp& warp = *t->warp;
    Block& b = of(t);
    if ((warp.arrived != 0 && warp.op != op) || warp.exited != 0) [[unlikely]]
        b.refuse_meeting(*t, *op);
    warp.op = op;
    warp.arrived |= 1u << t->lane;
    if (warp.arrived != kAllLanes) return b.leave(*t);
    op->run(warp);
    warp.arrived = 0;
    b.set_ready(warp.index, ~(1u << t->lane));
    if (b.chance(8)) {
        b.set_ready(*t);
        b.leave(*t);
    }
}

void Block::barrier(HostThread* t, std::uint32_t id, std::uint32_t threads) {
    Block& b = of(t);
    Barrier& barrier = b.barriers_[id];
    if (threads == 0 || threads % 32 != 0 || threads > b.threads) {
        b.blame(b.name(*t) + ": barrier " + std::to_string(id) + " for " + std::to_string(threads) +
                " threads: not whole warps of a block of " + std::to_string(b.threads));
        b.abandon(*t);
    }
    if (barrier.arrived != 0 && barrier.expected != threads) {
        b.blame(b.name(*t) + " brings barrier " + std::to_string(id) + " a count of " + std::to_string(threads) +
                " threads, others brought " + std::to_string(barrier.expected));
        b.abandon(*t);
    }
    barrier.expected = threads;
    barrier.waiting[t->warp->index] |= 1u << t->lane;
    if (++barrier.arrived < threads) return b.leave(*t);
    b.progress();
    for (std::uint32_t w = 0; w < b.warp_count_; w++) {
        if (barrier.waiting[w] == 0) continue;
        if (barrier.waiting[w] != kAllLanes) {
            b.blame("barrier " + std::to_string(id) + " of block " + std::to_string(b.block) +
                    " is complete with only some lanes of warp " + std::to_string(w) + ": its " + std::to_string(threads) +
                    " threads must be whole warps");
            b.abandon(*t);
        }
        b.set_ready(w, kAllLanes);
        barrier.waiting[w] = 0;
    }
    barrier.arrived = 0;
    t->warp->ready &= ~(1u << t->lane);
    breathe(t);
}

}  // namespace sapwood::host
