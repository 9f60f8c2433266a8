// SPDX-License-Identifier: Apache-2.0
#include "host/fiber.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <string>

#include "base/error.h"

#if !defined(__x86_64__)
#include <boost/context/detail/fcontext.hpp>
#endif
#if defined(SAPWOOD_HOST_ASAN)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#elif defined(SAPWOOD_HOST_TSAN)
#include <sanitizer/tsan_interface.h>
#endif

namespace sapwood::host {
namespace {

using kernel::kHostMaxThreads;
using kernel::kHostRegionAlign;
using kernel::kHostSlotBytes;
static_assert(sizeof(HostThread) * kHostMaxThreads <= kHostSlotBytes, "the array of threads fills slot 0 at most");

constexpr std::size_t kRegionBytes = (kHostMaxThreads + 1) * kHostSlotBytes;

std::size_t page_bytes() {
    static const std::size_t bytes = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
    return bytes;
}

}  // namespace

FiberRegion::FiberRegion() {
    constexpr std::size_t asked = kRegionBytes + kHostRegionAlign;
    void* mapping = mmap(nullptr, asked, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (mapping == MAP_FAILED) {
        raise(ErrorCode::kInternal, "host target: cannot reserve " + std::to_string(asked >> 20) +
                                        " MiB of address space for fibers: " + std::strerror(errno) + "; raise ulimit -v");
    }
    auto* begin = static_cast<std::byte*>(mapping);
    const auto address = reinterpret_cast<std::uintptr_t>(begin);
    const std::size_t skip = (kHostRegionAlign - address % kHostRegionAlign) % kHostRegionAlign;
    base_ = begin + skip;
    if (skip != 0) munmap(begin, skip);
    if (asked - skip != kRegionBytes) munmap(base_ + kRegionBytes, asked - skip - kRegionBytes);
    if (mprotect(base_, sizeof(HostThread) * kHostMaxThreads, PROT_READ | PROT_WRITE) != 0) {
        const int cause = errno;
        munmap(base_, kRegionBytes);
        raise(ErrorCode::kInternal, std::string("host target: cannot commit fiber table: ") + std::strerror(cause));
    }
}

FiberRegion::~FiberRegion() {
#if defined(SAPWOOD_HOST_ASAN)
    __asan_unpoison_memory_region(base_, kRegionBytes);  // whoever maps these addresses next finds them clean
#elif defined(SAPWOOD_HOST_TSAN)
    for (std::uint32_t i = 0; i < committed_; i++) __tsan_destroy_fiber(threads()[i].sanitizer);
#endif
    munmap(base_, kRegionBytes);
}

#if defined(__x86_64__)

// Boost's switch costs four times as much (11 ns against 3): it saves the floating-point control words, which kernels do not touch,
// and leaves by an indirect jump, which upsets the return predictor. All lanes of a warp stand at the same return address, so that
// `ret` is predicted here.
extern "C" void sapwood_host_switch(void** save, void* resume) noexcept;  // NOLINT: in fiber.h, too, where it is called directly
asm(R"(
    .pushsection .text
    .p2align 4
    .hidden sapwood_host_switch
    .globl sapwood_host_switch
    .type sapwood_host_switch, @function
sapwood_host_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
    .size sapwood_host_switch, .-sapwood_host_switch
    .popsection
)");

static void jump(HostThread& from, HostThread& to) noexcept { sapwood_host_switch(&from.context, to.context); }

static void* first_context(std::byte* top, std::size_t, void (*entry)()) {
    auto** frame = reinterpret_cast<void**>(top) - 8;  // six registers, where to return, end of the call chain
    std::memset(frame, 0, 8 * sizeof(void*));
    frame[6] = reinterpret_cast<void*>(entry);
    return frame;
}

#else

namespace fcontext = boost::context::detail;

static void jump(HostThread& from, HostThread& to) noexcept {
    const fcontext::transfer_t back = fcontext::jump_fcontext(to.context, &from);
    static_cast<HostThread*>(back.data)->context = back.fctx;
}

static void (*first_entry)() = nullptr;  // the executor has one entry for all fibers

static void start(fcontext::transfer_t back) {
    static_cast<HostThread*>(back.data)->context = back.fctx;
    first_entry();
}

static void* first_context(std::byte* top, std::size_t bytes, void (*entry)()) {
    first_entry = entry;
    return fcontext::make_fcontext(top, bytes, start);
}

#endif

void FiberRegion::prepare(std::uint32_t index, void (*entry)(), [[maybe_unused]] bool dirty) {
    std::byte* slot = base_ + (index + 1) * kHostSlotBytes;
    std::byte* bottom = slot + page_bytes();
    while (committed_ <= index) {
        std::byte* stack = base_ + (committed_ + 1) * kHostSlotBytes + page_bytes();
        if (mprotect(stack, kHostSlotBytes - page_bytes(), PROT_READ | PROT_WRITE) != 0) {
            raise(ErrorCode::kInternal, "host target: cannot commit the stack of fiber " + std::to_string(committed_) + ": " +
                                            std::strerror(errno) + "; vm.max_map_count may be too low");
        }
        committed_++;
    }
    // Stacks at equal offsets of aligned slots would all fall in the same few sets of the L1 cache.
    std::byte* top = slot + kHostSlotBytes - index * 5 % 64 * 64;
#if defined(SAPWOOD_HOST_ASAN)
    // A fiber never returns from its entry, so that the red zones of its last frames are still there.
    std::byte* from = dirty ? bottom : slot + kHostSlotBytes - 16 * 1024;
    __asan_unpoison_memory_region(from, static_cast<std::size_t>(slot + kHostSlotBytes - from));
#endif
    HostThread& thread = threads()[index];
#if defined(SAPWOOD_HOST_TSAN)  // afresh each time: its idea of the call stack is that of the abandoned entry
    if (thread.sanitizer != nullptr) __tsan_destroy_fiber(thread.sanitizer);
    thread.sanitizer = __tsan_create_fiber(0);
#else
    thread.sanitizer = nullptr;
#endif
    thread.context = first_context(top, static_cast<std::size_t>(top - bottom), entry);
}

// --- what sanitizers are told of a switch: before it, where to; after it, on the new stack, that it is done -----------------

#if defined(SAPWOOD_HOST_ASAN)

static void announce(void** fake_stack, const HostThread& to) noexcept {
    constexpr std::uint32_t main_thread = ~0u;  // HostThread::thread of a MainFiber
    if (to.thread == main_thread) {
        const auto& main = static_cast<const MainFiber&>(to);
        __sanitizer_start_switch_fiber(fake_stack, main.stack_bottom, main.stack_bytes);
    } else {
        const auto region = reinterpret_cast<std::uintptr_t>(&to) & ~(kHostRegionAlign - 1);
        const auto bottom = region + (to.thread + 1) * kHostSlotBytes + page_bytes();
        __sanitizer_start_switch_fiber(fake_stack, reinterpret_cast<void*>(bottom), kHostSlotBytes - page_bytes());
    }
}
static void announce_arrival(HostThread& self) noexcept { __sanitizer_finish_switch_fiber(self.sanitizer, nullptr, nullptr); }

void enter_main(MainFiber& main) noexcept { main.stack_bottom = nullptr; }
void enter_fiber(MainFiber& main) noexcept {
    const void* bottom = nullptr;
    std::size_t bytes = 0;
    __sanitizer_finish_switch_fiber(nullptr, &bottom, &bytes);
    if (main.stack_bottom == nullptr) {  // the first fiber of a block comes from main
        main.stack_bottom = bottom;
        main.stack_bytes = bytes;
    }
}

void leave_fiber(HostThread& from, HostThread& to) noexcept {
    from.sanitizer = nullptr;
    announce(nullptr, to);  // null: the fake stack is freed
    jump(from, to);
    __builtin_unreachable();
}

#else

#if defined(SAPWOOD_HOST_TSAN)
// Fibers of a block run one at a time on one OS thread, and each switch orders them: races are looked for between blocks.
[[maybe_unused]] static void announce(void**, const HostThread& to) noexcept { __tsan_switch_to_fiber(to.sanitizer, 0); }
void enter_main(MainFiber& main) noexcept { main.sanitizer = __tsan_get_current_fiber(); }
#else
[[maybe_unused]] static void announce(void**, const HostThread&) noexcept {}
void enter_main(MainFiber&) noexcept {}
#endif
[[maybe_unused]] static void announce_arrival(HostThread&) noexcept {}
void enter_fiber(MainFiber&) noexcept {}

void leave_fiber(HostThread& from, HostThread& to) noexcept {
    announce(nullptr, to);
    jump(from, to);
    __builtin_unreachable();
}

#endif

#if !defined(SAPWOOD_HOST_PLAIN_SWITCH)
void switch_fiber(HostThread& from, HostThread& to) noexcept {
    announce(&from.sanitizer, to);
    jump(from, to);
    announce_arrival(from);
}
#endif

}  // namespace sapwood::host
