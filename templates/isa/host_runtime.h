// SPDX-License-Identifier: Apache-2.0
// What a host kernel and the executor (lib/host) share: plain structs and one table of functions. A CUDA thread is a fiber; who
// runs is found from the stack pointer alone, so that nothing is thread-local, nothing is passed along and nothing needs a
// relocation.
#pragma once

#include "isa/types.h"

#if defined(__SANITIZE_ADDRESS__)
#define SAPWOOD_HOST_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define SAPWOOD_HOST_ASAN 1
#endif
#endif

namespace sapwood::kernel {

inline constexpr u32 kHostAbi = 0x53570003;   // changes with any struct below
inline constexpr u32 kHostMaxThreads = 1024;  // a block
inline constexpr u32 kHostMaxWarps = kHostMaxThreads / 32;
inline constexpr u32 kHostSharedStart = 1024;  // first valid shared address: 0 is never one
#if defined(SAPWOOD_HOST_ASAN)
inline constexpr u64 kHostSlotBytes = 256 * 1024;  // red zones make frames several times larger
#else
inline constexpr u64 kHostSlotBytes = 64 * 1024;
#endif
/// A region is aligned to this; slot 0 holds the HostThread array, slot 1 + t guard page and stack of thread t.
inline constexpr u64 kHostRegionAlign = 2048 * kHostSlotBytes;

struct HostThread;
struct HostWarp;
struct HostBlock;

/// What all 32 lanes do at once: the last lane to arrive runs it for the warp.
struct HostWarpOp {
    const char* name;
    void (*run)(HostWarp& warp);
};

/// The executor, as seen by kernels. Each may run other fibers before it returns, except fail(), which never returns.
struct HostRuntime {
    void (*meet)(HostThread* self, const HostWarpOp* op);
    void (*barrier)(HostThread* self, u32 id, u32 threads);  // id 0: the whole block
    void (*mbarrier_init)(HostThread* self, u32 shared, u32 arrivals);
    void (*mbarrier_arrive)(HostThread* self, u32 shared);
    bool (*mbarrier_try)(HostThread* self, u32 shared, u32 parity);
    void (*mbarrier_wait)(HostThread* self, u32 shared, u32 parity);
    void (*cp_async_16)(HostThread* self, u32 shared, const void* global, u32 bytes);
    void (*cp_async_4)(HostThread* self, u32 shared, const void* global);
    void (*cp_async_arrive)(HostThread* self, u32 mbarrier);
    void (*breathe)(HostThread* self);                 // a shuffled schedule may go elsewhere here
    u32 (*poll)(HostThread* self, const u32* global);  // an acquire load; what does not change lets others run first
    void (*fail)(HostThread* self, const char* what, u64 found, u64 limit);
};

struct alignas(64) HostThread {
    HostWarp* warp;
    HostBlock* block;
    u32 thread, lane;
    // the executor's own
    void* context;    // saved stack pointer while the fiber does not run
    void* sanitizer;  // what a sanitizer keeps of a fiber
    u32 wait_shared, wait_parity;
    const u32* polled;
    u32 polled_value;
};

/// Operands of collectives are copied here by the lanes: dense, and never read through another lane's stack. A result stays until
/// its own lane arrives at the next collective, hence no field is both an input of one operation and an output of another.
struct alignas(64) HostWarp {
    HostThread* threads;  // of lane 0
    HostBlock* block;
    alignas(64) u32 in[32];
    u32 out[32];
    u32 fragments[4][32];  // of ldmatrix: matrix, lane
    alignas(64) u16 a[16][16];
    u16 b[16][8];
    f32 d[16][8];
    u32 descriptor, group_bytes;  // of wgmma: a shared address, from eight rows to the next
    alignas(64) f32 d64[16][64];
    // the executor's own
    const HostWarpOp* op;
    u32 index, arrived, ready, exited;
};

struct HostBlock {
    const HostRuntime* runtime;
    u8* shared;      // what shared address 0 would be; 1024-byte aligned
    u32 shared_end;  // first address beyond the launch's dynamic shared memory
    u32 block, grid, threads;
    bool wide;  // the CPU has AVX2 and FMA
};

/// What the entry symbol is.
struct HostEntry {
    u32 abi, threads, blocks, params_bytes, params_align, slot_bytes;
    void (*run)(const void* params);  // one CUDA thread, on its fiber
};

template <class Params, u32 threads, u32 blocks>
constexpr HostEntry host_entry(void (*run)(const void* params)) {
    return {kHostAbi, threads, blocks, sizeof(Params), alignof(Params), static_cast<u32>(kHostSlotBytes), run};
}

inline HostThread* host_self() {
    const u64 frame = reinterpret_cast<u64>(__builtin_frame_address(0));
    const u64 region = frame & ~(kHostRegionAlign - 1);
    return reinterpret_cast<HostThread*>(region) + ((frame - region) / kHostSlotBytes - 1);
}

}  // namespace sapwood::kernel
