// SPDX-License-Identifier: Apache-2.0
// Fibers of one block at a time: guarded stacks in one aligned region, and the switch between them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

#include "isa/host_runtime.h"

#if defined(__SANITIZE_THREAD__)
#define SAPWOOD_HOST_TSAN 1
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define SAPWOOD_HOST_TSAN 1
#endif
#endif
#if defined(__x86_64__) && !defined(SAPWOOD_HOST_ASAN) && !defined(SAPWOOD_HOST_TSAN)
#define SAPWOOD_HOST_PLAIN_SWITCH 1
#endif

namespace sapwood::host {

using kernel::HostThread;

/// The OS thread's own stack, to which the last fiber of a block returns.
struct MainFiber : HostThread {
    const void* stack_bottom = nullptr;  // known to AddressSanitizer's builds only
    std::size_t stack_bytes = 0;
};

/// Address space for kHostMaxThreads fibers, reserved once and committed stack by stack. A kernel finds its HostThread from its
/// stack pointer, see isa/host_runtime.h.
class FiberRegion {
public:
    FiberRegion();  // throws Error{kInternal} when the address space is not to be had
    ~FiberRegion();
    FiberRegion(const FiberRegion&) = delete;
    FiberRegion& operator=(const FiberRegion&) = delete;

    HostThread* threads() const noexcept { return reinterpret_cast<HostThread*>(base_); }
    /// Thread `index` starts in `entry` (which must not return) when it is switched to first. `dirty`: its stack may have been left
    /// in the middle of something.
    void prepare(std::uint32_t index, void (*entry)(), bool dirty);

private:
    std::byte* base_ = nullptr;
    std::uint32_t committed_ = 0;
};

/// Suspends `from`, which is running, and resumes `to`; returns when somebody resumes `from`.
#if defined(SAPWOOD_HOST_PLAIN_SWITCH)
extern "C" void sapwood_host_switch(void** save, void* resume) noexcept;
inline void switch_fiber(HostThread& from, HostThread& to) noexcept { sapwood_host_switch(&from.context, to.context); }
#else
void switch_fiber(HostThread& from, HostThread& to) noexcept;
#endif
/// The same for a `from` that is never resumed.
[[noreturn]] void leave_fiber(HostThread& from, HostThread& to) noexcept;
/// The calling OS thread is `main` until the next call: to be said before its first switch.
void enter_main(MainFiber& main) noexcept;
/// First statement of a fiber's entry. `main` learns its stack if it was the one that switched here.
void enter_fiber(MainFiber& main) noexcept;

}  // namespace sapwood::host
