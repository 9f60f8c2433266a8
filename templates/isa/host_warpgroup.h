// SPDX-License-Identifier: Apache-2.0
// Plain C++ bodies of isa/warpgroup.h. A product is finished when it is issued, each warp for its own 16 rows.
#pragma once

namespace sapwood::kernel {

// --- copy engine -----------------------------------------------------------------------------------------------------
inline void prefetch_tensor_map(const abi::TensorMap&) {}
inline abi::HostTensorMap host_tensor_map(const abi::TensorMap& words) {
    abi::HostTensorMap map;
    __builtin_memcpy(&map, &words, sizeof(map));
    return map;
}
inline void host_tensor_load(u32 shared, const abi::HostTensorMap& map, i32 row, u32 head, u32 first_panel) {
    if (shared % 1024 != 0) [[unlikely]]
        host_fail("tensor_load: misaligned shared address", shared, 1024);
    const u8* from = static_cast<const u8*>(map.data) + static_cast<i64>(head) * map.head_stride;
    for (u64 panel = 0; panel < map.box_panels; ++panel) {
        for (u64 r = 0; r < map.box_rows; ++r) {
            const i64 at = static_cast<i64>(row) + static_cast<i64>(r);
            const bool there = at >= 0 && at < static_cast<i64>(map.rows);
            const u32 to = shared + static_cast<u32>((panel * map.box_rows + r) * 128);
            for (u32 c = 0; c < 8; ++c) {
                const u8* source = there ? from + at * map.token_stride + (first_panel + panel) * 128 + c * 16 : nullptr;
                cp_async_16(to + (c ^ (to >> 7 & 7)) * 16, source, there ? 16 : 0);
            }
        }
    }
}
template <CacheHint>
inline void tensor_load(u32 shared, const abi::TensorMap& words, u32, i32 row, u32 head, u32 first_panel = 0) {
    host_tensor_load(shared, host_tensor_map(words), row, head, first_panel);
}
inline void tensor_load_bricks(u32 shared, const abi::TensorMap& words, u32, i32 row, u32 head) {
    abi::HostTensorMap map = host_tensor_map(words);
    map.box_rows = 8;
    for (u32 group = 0; group < map.box_groups; ++group) {
        const u32 to = shared + group * static_cast<u32>(map.box_panels) * 1024;
        host_tensor_load(to, map, row + static_cast<i32>(group * 8), head, 0);
    }
}
template <CacheHint>
inline void tensor_load_heads(u32 shared, const abi::TensorMap& words, u32, i32 row, u32 first_head) {
    abi::HostTensorMap map = host_tensor_map(words);
    const u64 heads = map.box_heads, panels = map.box_panels;
    map.box_panels = 1;
    for (u64 panel = 0; panel < panels; ++panel) {
        for (u64 head = 0; head < heads; ++head) {
            const u32 to = shared + static_cast<u32>((panel * heads + head) * map.box_rows * 128);
            host_tensor_load(to, map, row, first_head + static_cast<u32>(head), static_cast<u32>(panel));
        }
    }
}
/// The executor counts arrivals, not bytes: this one comes when the thread's copies so far have landed, so they must have been
/// issued before.
inline void mbarrier_arrive_bytes(u32 mbarrier, u32) { cp_async_arrive(mbarrier); }
/// The thread arrives behind its copies, by cp_async_arrive.
inline void mbarrier_expect_bytes(u32, u32) {}
inline void fence_mbarrier_init() {}
inline void bulk_load(u32 shared, const void* global, u32 bytes, u32) {
    for (u32 at = 0; at < bytes; at += 16) cp_async_16(shared + at, static_cast<const u8*>(global) + at, 16);
}
inline void bulk_reduce_add(f32* global, u32 shared, u32 bytes) {
    const auto* from = reinterpret_cast<const f32*>(host_shared(*host_self()->block, shared, bytes, 16));
    for (u32 i = 0; i < bytes / 4; ++i) host_reduce_add(global + i, from[i]);
}
inline void bulk_store(void* global, u32 shared, u32 bytes) {
    __builtin_memcpy(host_global<u8>(global, 16), host_shared(*host_self()->block, shared, bytes, 16), bytes);
}
inline void reduce_add_4(f32* global, f32 a, f32 b, f32 c, f32 d) {
    f32* to = host_global<f32>(global, 16);
    host_reduce_add(to, a);
    host_reduce_add(to + 1, b);
    host_reduce_add(to + 2, c);
    host_reduce_add(to + 3, d);
}
inline void bulk_commit() {}
template <u32 kPending>
inline void bulk_wait_read() {}
inline void bulk_wait() {}
inline void fence_async_proxy_global() {}
inline U32x4 load_shared_16(u32 shared) {
    U32x4 r;
    __builtin_memcpy(&r, host_shared(*host_self()->block, shared, 16, 16), 16);
    return r;
}
inline void stmatrix_x4(u32 shared, const u32 (&r)[4]) {
    const HostThread* self = host_self();
    for (u32 matrix = 0; matrix < 4; ++matrix) {  // this lane's pair of elements goes to row lane / 4
        const u32 row = shfl(shared, matrix * 8 + self->lane / 4);
        __builtin_memcpy(host_shared(*self->block, row, 16, 16) + self->lane % 4 * 4, &r[matrix], 4);
    }
    warp_sync();
}
inline void stmatrix_x4_trans(u32 shared, const u32 (&r)[4]) {
    const HostThread* self = host_self();
    for (u32 matrix = 0; matrix < 4; ++matrix) {
        for (u32 i = 0; i < 2; ++i) {  // this lane's element of column 2 (lane % 4) + i goes to stored row of that number
            const u32 row = shfl(shared, matrix * 8 + self->lane % 4 * 2 + i);
            const u16 element = static_cast<u16>(r[matrix] >> (i * 16));
            __builtin_memcpy(host_shared(*self->block, row, 16, 16) + self->lane / 4 * 2, &element, 2);
        }
    }
    warp_sync();
}

inline void turn_wait(u32) {}
inline void turn_pass(u32) {}

// --- products --------------------------------------------------------------------------------------------------------
/// Low words are shared addresses, which have 18 bits, with the distance of panels above them; high words the distance of groups.
inline WgmmaOperand wgmma_panel(u32 shared, u32 group_bytes = 1024) { return {shared, group_bytes}; }
inline WgmmaOperand wgmma_advance(WgmmaOperand panel, u32 bytes) { return {panel.low + bytes, panel.high}; }
inline void wgmma_fence() {}
inline void wgmma_commit() {}
template <u32 kPending>
inline void wgmma_wait() {}
inline void wgmma_settled(u32 (&)[4]) {}
template <class T>
inline void wgmma_64x64x16(f32 (&d)[8][4], const u32 (&a)[4], WgmmaOperand b, bool accumulate) {
    host_wgmma<T, false>(d, a, b.low, b.high, accumulate);
}
inline void fence_async_proxy() {}

inline WgmmaOperand wgmma_panels(u32 shared, u32 panel_bytes, u32 group_bytes = 1024) {
    return {shared | panel_bytes >> 4 << 18, group_bytes};
}

/// This lane's A fragment from 64 rows of 128 bytes.
inline void host_gather_a(u32 (&fragment)[4], WgmmaOperand a) {
    const HostThread* self = host_self();
    for (u32 i = 0; i < 4; ++i) {
        const u32 row = (self->thread / 32 % 4) * 16 + self->lane / 4 + i % 2 * 8;
        const u32 straight = a.low + row / 8 * a.high + row % 8 * 128 + i / 2 * 16 + self->lane % 4 * 4;
        __builtin_memcpy(&fragment[i], host_shared(*self->block, straight ^ (straight >> 7 & 7) << 4, 4, 4), 4);
    }
}
template <class T, u32 kN>
inline void wgmma_shared(f32 (&d)[kN / 8][4], WgmmaOperand a, WgmmaOperand b, bool accumulate) {
    u32 fragment[4];
    host_gather_a(fragment, a);
    for (u32 n = 0; n < kN; n += 64)
        host_wgmma<T, false>(reinterpret_cast<f32(&)[8][4]>(d[n / 8]), fragment, b.low + n / 8 * b.high, b.high, accumulate);
}
template <class T, u32 kN>
inline void wgmma_shared_transposed(f32 (&d)[kN / 8][4], WgmmaOperand a, WgmmaOperand b, bool accumulate) {
    u32 fragment[4];
    host_gather_a(fragment, a);
    f32 all[8][4] = {};  // of 64 columns, those beyond kN are dropped
    __builtin_memcpy(all, d, sizeof(d));
    host_wgmma<T, true>(all, fragment, b.low, b.high, accumulate);
    __builtin_memcpy(d, all, sizeof(d));
}
template <class T, u32 kN>
inline void wgmma_registers(f32 (&d)[kN / 8][4], const u32 (&a)[4], WgmmaOperand b) {
    const u32 panel_bytes = b.low >> 18 << 4;
    for (u32 n = 0; n < kN; n += 64) {
        const u32 panel = (b.low & 0x3ffff) + n / 64 * panel_bytes;
        host_wgmma<T, true>(reinterpret_cast<f32(&)[8][4]>(d[n / 8]), a, panel, b.high, true);
    }
}
template <u32 kBlocks>
inline void wgmma_settled(f32 (&)[kBlocks][4]) {}

}  // namespace sapwood::kernel
