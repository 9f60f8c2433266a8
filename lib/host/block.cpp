// SPDX-License-Identifier: Apache-2.0
#include "host/block.h"

#include <exception>
#include <utility>

#include "base/error.h"

namespace sapwood::host {
namespace {

constexpr std::uint32_t kAllLanes = ~0u;
/// Rounds in which nobody can do more than try an mbarrier again, before that counts as waiting forever.
constexpr std::uint32_t kIdleRounds = 10'000;
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
    .cp_async_arrive = cp_async_arrive,
    .breathe = breathe,
    .fail = fail_from_kernel,
};

Block::Block() : HostBlock{}, main_{}, warps_(kHostMaxWarps), queues_(kHostMaxThreads) {
    main_.thread = ~0u;
    runtime = &kRuntime;
    wide = has_wide_vectors();
}

std::optional<BlockFailure> Block::run(const HostEntry& entry, const void* params, const jit::LaunchShape& shape,
                                       std::uint32_t index, std::uint64_t seed) {
    entry_ = &entry;
    params_ = params;
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
        waiting_[w] = spinning_[w] = 0;
    }
    for (std::uint32_t i = 0; i < threads; i++) {
        region_.prepare(i, fiber_entry, dirty_);
        HostThread& t = region_.threads()[i];
        t.warp = &warps_[i / 32];
        t.block = this;
        t.thread = i;
        t.lane = i % 32;
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
    main_.stack_bottom = nullptr;
    failure_.reset();

    main_.lane = 31;  // round robin begins after it
    main_.warp = &warps_[warp_count_ - 1];
    switch_fiber(main_, schedule(main_));

    dirty_ = failure_.has_value();
#if defined(SAPWOOD_HOST_ASAN)
    if (dirty_) {  // each suspended fiber frees its fake stack: that can only be done on its own stack
        draining_ = true;
        for (std::uint32_t i = 0; i < threads; i++) {
            const HostThread& t = region_.threads()[i];
            if (t.fake_stack != nullptr) switch_fiber(main_, region_.threads()[i]);
        }
        draining_ = false;
    }
#endif
    if (!failure_ && !guards_intact()) {
        failure_ = BlockFailure{"block " + std::to_string(block) + " wrote outside its " + std::to_string(shape.shared_bytes) +
                                    " bytes of dynamic shared memory", ""};
    }
    return failure_;
}

// --- who runs next -----------------------------------------------------------------------------------------------------

std::uint32_t Block::random() noexcept {  // xorshift64*
    rng_ ^= rng_ >> 12;
    rng_ ^= rng_ << 25;
    rng_ ^= rng_ >> 27;
    return static_cast<std::uint32_t>((rng_ * 0x2545f4914f6cdd1d) >> 32);
}

void Block::set_ready(std::uint32_t warp, std::uint32_t lanes) {
    warps_[warp].ready |= lanes;
    ready_warps_ |= 1u << warp;
}
void Block::set_ready(HostThread& t) { set_ready(t.warp->index, 1u << t.lane); }

/// The first bit of `set` at or after `from`, wrapping around.
static std::uint32_t next_bit(std::uint32_t set, std::uint32_t from) {
    return (static_cast<std::uint32_t>(std::countr_zero(std::rotr(set, static_cast<int>(from & 31)))) + from) & 31;
}

HostThread& Block::choose_lane(HostWarp& warp, std::uint32_t after) {
    const std::uint32_t lane = next_bit(warp.ready, shuffled_ ? random() : after + 1);
    warp.ready &= ~(1u << lane);
    return warp.threads[lane];
}

/// Gives way to another fiber; `t` has been put where somebody will find it, or is ready.
void Block::leave(HostThread& t) {
    HostWarp& warp = *t.warp;
    if (warp.ready != 0 && !chance(32)) [[likely]] {  // the warp's own lanes first: that is what makes collectives cheap
        suspend(t, choose_lane(warp, t.lane));
    } else {
        suspend(t, schedule(t));
    }
}

void Block::suspend(HostThread& t, HostThread& next) {
    if (&next == &t) return;
    switch_fiber(t, next);
#if defined(SAPWOOD_HOST_ASAN)
    if (draining_) leave_fiber(t, main_);
#endif
}

/// A ready fiber of any warp; when there is none and never will be, the main fiber.
HostThread& Block::schedule(HostThread& t) {
    if (landing_ == Landing::random && !in_flight_.empty() && chance(4)) land_some(false);
    for (;;) {
        while (ready_warps_ != 0) {
            std::uint32_t candidates = ready_warps_ & ~slow_warps_;
            if (candidates == 0 || chance(16)) candidates = ready_warps_;
            const std::uint32_t w = next_bit(candidates, shuffled_ ? random() : t.warp->index + 1);
            if (warps_[w].ready != 0) return choose_lane(warps_[w], w == t.warp->index ? t.lane : 31);
            ready_warps_ &= ~(1u << w);
        }
        if (!end_of_waiting()) return main_;
    }
}

/// Nobody is ready: lands what is in flight, or lets the spinning ones try again. False when the block is over or stuck.
bool Block::end_of_waiting() {
    if (live_ == 0) return false;
    if (!in_flight_.empty()) {
        idle_rounds_ = 0;
        return land_some(true);
    }
    bool spinning = false;
    for (std::uint32_t w = 0; w < warp_count_; w++) {
        if (spinning_[w] == 0) continue;
        spinning = true;
        set_ready(w, spinning_[w]);
        waiting_[w] &= ~spinning_[w];
        spinning_[w] = 0;
    }
    if (spinning && ++idle_rounds_ < kIdleRounds) return true;
    std::string where = places();
    blame("block " + std::to_string(block) + " of " + std::to_string(grid) + " cannot go on: " +
          (where.size() <= kLine ? where : where.substr(0, kLine) + " ..."));
    return false;
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
    t->fake_stack = nullptr;  // freed on leaving
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

void Block::meet(HostThread* t, const HostWarpOp* op) {
    HostWarp& warp = *t->warp;
    if (warp.arrived == 0) {
        warp.op = op;
    } else if (warp.op != op) [[unlikely]] {
        Block& b = of(t);
        b.blame(b.name(*t) + " calls " + op->name + " while other lanes of its warp wait at " + warp.op->name);
        b.abandon(*t);
    }
    if (warp.exited != 0) [[unlikely]] {
        Block& b = of(t);
        b.blame(b.name(*t) + " calls " + op->name + " after other lanes of its warp have exited");
        b.abandon(*t);
    }
    warp.arrived |= 1u << t->lane;
    Block& b = of(t);
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
    b.idle_rounds_ = 0;
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
