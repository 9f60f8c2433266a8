// SPDX-License-Identifier: Apache-2.0
// Whether this process is still the one that made an object: one load, so that a launch can afford to ask. fork() is seen through
// pthread_atfork; a raw clone system call is not.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>

namespace sapwood {

/// Changes in the child of every fork after the first call in this process or an ancestor.
std::uint64_t process_generation() noexcept;

/// Something with mutexes or threads in it, made anew in a forked child: in the parent's a mutex may be locked and work under way,
/// by threads that the child does not have. The parent's is left alone there.
template <class T>
class PerProcess {
public:
    explicit PerProcess(std::function<std::unique_ptr<T>()> make) : make_(std::move(make)) { get(); }
    ~PerProcess() {
        Slot* mine = slot_.load();
        if (mine->generation == process_generation()) delete mine;
    }
    PerProcess(const PerProcess&) = delete;
    PerProcess& operator=(const PerProcess&) = delete;

    T& get() {
        Slot* seen = slot_.load(std::memory_order_acquire);
        const std::uint64_t now = process_generation();
        while (seen == nullptr || seen->generation != now) {
            auto fresh = std::make_unique<Slot>(Slot{now, make_()});
            if (slot_.compare_exchange_strong(seen, fresh.get(), std::memory_order_acq_rel)) return *fresh.release()->value;
        }
        return *seen->value;
    }

private:
    struct Slot {
        std::uint64_t generation;
        std::unique_ptr<T> value;
    };
    std::function<std::unique_ptr<T>()> make_;
    std::atomic<Slot*> slot_{nullptr};
};

}  // namespace sapwood
