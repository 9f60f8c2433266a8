// SPDX-License-Identifier: Apache-2.0
// Inline-PTX bodies of isa/warpgroup.h, sm_90a.
#pragma once

namespace sapwood::kernel {

// --- copy engine -----------------------------------------------------------------------------------------------------
/// A tile [rows of the box, panels of the box] of one head, from `row` and `panel` (64 elements each) on, to `shared` (1024-byte
/// aligned) as Panels lays it out; rows that the tensor does not have are zeros. Its bytes are counted on `mbarrier`, which is to
/// expect them: see mbarrier_arrive_bytes.
template <CacheHint kHint>
SAPWOOD_DEVICE void tensor_load(u32 shared, const abi::TensorMap& map, u32 mbarrier, i32 row, u32 head, u32 panel = 0) {
    // The policies as createpolicy.fractional would make them for all of the data: evict first, last.
    constexpr u64 kPolicy = kHint == CacheHint::once ? 0x12F0000000000000ull : 0x14F0000000000000ull;
    asm volatile(
        "cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%0], [%1, {%3, %4, %7, %5}], "
        "[%2], %6;" ::"r"(shared),
        "l"(&map), "r"(mbarrier), "r"(0), "r"(row), "r"(head), "l"(kPolicy), "r"(panel)
        : "memory");
}
/// The same of a map whose box has several heads: a panel is the rows of each of them, one head behind the other.
template <CacheHint kHint>
SAPWOOD_DEVICE void tensor_load_heads(u32 shared, const abi::TensorMap& map, u32 mbarrier, i32 row, u32 first_head) {
    tensor_load<kHint>(shared, map, mbarrier, row, 0, first_head);  // such maps have the coordinates of heads and panels exchanged
}
/// The same of a map whose box is two groups of eight rows: as Bricks lays them out, all panels.
SAPWOOD_DEVICE void tensor_load_bricks(u32 shared, const abi::TensorMap& map, u32 mbarrier, i32 row, u32 head) {
    asm volatile(
        "cp.async.bulk.tensor.5d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %3, %3, %5}], [%2];" ::"r"(
            shared),
        "l"(&map), "r"(mbarrier), "r"(0), "r"(row), "r"(head)
        : "memory");
}
/// Before the first tensor_load, which would otherwise wait for the map as well.
SAPWOOD_DEVICE void prefetch_tensor_map(const abi::TensorMap& map) {
    asm volatile("prefetch.tensormap [%0];" ::"l"(&map) : "memory");
}
/// That `bytes` of tensor_load are to be counted in this phase, before this thread arrives by other means.
SAPWOOD_DEVICE void mbarrier_expect_bytes(u32 mbarrier, u32 bytes) {
    asm volatile("mbarrier.expect_tx.relaxed.cta.shared::cta.b64 [%0], %1;" ::"r"(mbarrier), "r"(bytes) : "memory");
}
/// This thread's arrival, and the bytes that its tensor_load so far, or next, bring to the same phase.
SAPWOOD_DEVICE void mbarrier_arrive_bytes(u32 mbarrier, u32 bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(mbarrier), "r"(bytes) : "memory");
}
/// `bytes` (a multiple of 16) as they lie; counted on `mbarrier` like tensor_load.
SAPWOOD_DEVICE void bulk_load(u32 shared, const void* global, u32 bytes, u32 mbarrier) {
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(shared),
                 "l"(global), "r"(bytes), "r"(mbarrier)
                 : "memory");
}
/// Adds `bytes` (a multiple of 16) of fp32 values in shared memory to global memory, each addition atomic. What other threads wrote
/// there needs fence_async_proxy by them and a barrier. Grouped by bulk_commit.
SAPWOOD_DEVICE void bulk_reduce_add(f32* global, u32 shared, u32 bytes) {
    asm volatile("cp.reduce.async.bulk.global.shared::cta.bulk_group.add.f32 [%0], [%1], %2;" ::"l"(global), "r"(shared), "r"(bytes)
                 : "memory");
}
/// Writes them instead.
SAPWOOD_DEVICE void bulk_store(void* global, u32 shared, u32 bytes) {
    asm volatile("cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], %2;" ::"l"(global), "r"(shared), "r"(bytes) : "memory");
}
/// bulk_reduce_add for four values of this thread, 16-byte aligned.
SAPWOOD_DEVICE void reduce_add_4(f32* global, f32 a, f32 b, f32 c, f32 d) {
    asm volatile("red.relaxed.gpu.global.add.v4.f32 [%0], {%1, %2, %3, %4};" ::"l"(global), "f"(a), "f"(b), "f"(c), "f"(d)
                 : "memory");
}
SAPWOOD_DEVICE void bulk_commit() { asm volatile("cp.async.bulk.commit_group;" ::: "memory"); }
/// Until at most kPending of this thread's groups still read shared memory.
template <u32 kPending>
SAPWOOD_DEVICE void bulk_wait_read() {
    asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(kPending) : "memory");
}
/// Until all of them are written.
SAPWOOD_DEVICE void bulk_wait() { asm volatile("cp.async.bulk.wait_group 0;" ::: "memory"); }
/// Orders what this thread's bulk copies have done to global memory, or what it knows of those of others, and what is done by the
/// other of the two ways afterwards.
SAPWOOD_DEVICE void fence_async_proxy_global() { asm volatile("fence.proxy.async.global;" ::: "memory"); }
SAPWOOD_DEVICE U32x4 load_shared_16(u32 shared) {
    U32x4 r;
    asm volatile("ld.shared.v4.b32 {%0,%1,%2,%3}, [%4];" : "=r"(r.x), "=r"(r.y), "=r"(r.z), "=r"(r.w) : "r"(shared) : "memory");
    return r;
}
/// Four 8x8 matrices of 16-bit elements, from where ldmatrix_x4 would put them; lane l gives the address of row l%8 of matrix l/8.
SAPWOOD_DEVICE void stmatrix_x4(u32 shared, const u32 (&r)[4]) {
    asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1,%2,%3,%4};" ::"r"(shared), "r"(r[0]), "r"(r[1]), "r"(r[2]),
                 "r"(r[3])
                 : "memory");
}
/// The same, each transposed; lane l gives the address of (stored) row l%8 of matrix l/8.
SAPWOOD_DEVICE void stmatrix_x4_trans(u32 shared, const u32 (&r)[4]) {
    asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1,%2,%3,%4};" ::"r"(shared), "r"(r[0]), "r"(r[1]),
                 "r"(r[2]), "r"(r[3])
                 : "memory");
}

/// After mbarrier_init, before the block's barrier: the copy engine sees them too.
SAPWOOD_DEVICE void fence_mbarrier_init() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }

// --- turns -----------------------------------------------------------------------------------------------------------
/// Two warpgroups issue their products in turn, so that one takes exponentials while the other multiplies. `id` is a named barrier
/// of 256 threads: its owner waits, the other one passes. A matter of speed alone: nothing else is ordered by it.
SAPWOOD_DEVICE void turn_wait(u32 id) { asm volatile("bar.sync %0, 256;" ::"r"(id) : "memory"); }
SAPWOOD_DEVICE void turn_pass(u32 id) { asm volatile("bar.arrive %0, 256;" ::"r"(id) : "memory"); }

// --- products --------------------------------------------------------------------------------------------------------
/// Matrix descriptor (PTX ISA, "asynchronous warpgroup level matrix shared memory layout") of a panel whose groups of eight rows
/// lie `group_bytes` apart: both the K-major operand with a row for each n and, transposed, the MN-major one with a row for each k.
SAPWOOD_DEVICE WgmmaOperand wgmma_panel(u32 shared, u32 group_bytes = 1024) { return {shared >> 4, 0x40000000 | group_bytes >> 4}; }
/// The operand `bytes` further on: inside a panel 32 bytes a k step along a row, two groups down 16 rows.
SAPWOOD_DEVICE WgmmaOperand wgmma_advance(WgmmaOperand panel, u32 bytes) { return {panel.low + (bytes >> 4), panel.high}; }
/// Orders this thread's register writes before the next product that reads them.
SAPWOOD_DEVICE void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
SAPWOOD_DEVICE void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <u32 kPending>
SAPWOOD_DEVICE void wgmma_wait() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}
/// d (64x64, rows 16 w + … of warp w) = a (64x16, registers) * b (16x64, K-major in shared memory) + (accumulate ? d : 0).
/// Asynchronous: neither d nor a may be touched before the wait for its group. Layouts of d and a are those of mma_16x8x16, n
/// blocks side by side.
template <class T>
SAPWOOD_DEVICE void wgmma_64x64x16(f32 (&d)[8][4], const u32 (&a)[4], WgmmaOperand b, bool accumulate);
#define SAPWOOD_WGMMA(Type, type)                                                                                      \
    template <>                                                                                                        \
    SAPWOOD_DEVICE void wgmma_64x64x16<Type>(f32(&d)[8][4], const u32(&a)[4], WgmmaOperand b, bool accumulate) {       \
        asm volatile(                                                                                                  \
            "{ .reg .pred p; .reg .b64 b; setp.ne.u32 p, %37, 0; mov.b64 b, {%36, %38}; "                              \
            "wgmma.mma_async.sync.aligned.m64n64k16.f32." type "." type                                                \
            " {%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,"                                                 \
            "%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31}, {%32,%33,%34,%35}, b, p, 1, 1, 0; }"    \
            : "+f"(d[0][0]), "+f"(d[0][1]), "+f"(d[0][2]), "+f"(d[0][3]), "+f"(d[1][0]), "+f"(d[1][1]), "+f"(d[1][2]), \
              "+f"(d[1][3]), "+f"(d[2][0]), "+f"(d[2][1]), "+f"(d[2][2]), "+f"(d[2][3]), "+f"(d[3][0]), "+f"(d[3][1]), \
              "+f"(d[3][2]), "+f"(d[3][3]), "+f"(d[4][0]), "+f"(d[4][1]), "+f"(d[4][2]), "+f"(d[4][3]), "+f"(d[5][0]), \
              "+f"(d[5][1]), "+f"(d[5][2]), "+f"(d[5][3]), "+f"(d[6][0]), "+f"(d[6][1]), "+f"(d[6][2]), "+f"(d[6][3]), \
              "+f"(d[7][0]), "+f"(d[7][1]), "+f"(d[7][2]), "+f"(d[7][3])                                               \
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b.low), "r"(static_cast<u32>(accumulate)), "r"(b.high)   \
            : "memory");                                                                                               \
    }
SAPWOOD_WGMMA(Fp16, "f16")
SAPWOOD_WGMMA(Bf16, "bf16")
#undef SAPWOOD_WGMMA
/// After the wait, for a register operand that is read again later: without it ptxas (CUDA 13.0) has been seen to give the
/// registers of one that stays the same around a loop to other values.
SAPWOOD_DEVICE void wgmma_settled(u32 (&a)[4]) { asm volatile("" : "+r"(a[0]), "+r"(a[1]), "+r"(a[2]), "+r"(a[3])::"memory"); }
/// Orders what this thread has written to shared memory, or seen written through a barrier, before reads by products.
SAPWOOD_DEVICE void fence_async_proxy() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

/// Descriptor of an MN-major operand wider than one panel (see wgmma_panel): panels lie `panel_bytes` apart.
SAPWOOD_DEVICE WgmmaOperand wgmma_panels(u32 shared, u32 panel_bytes, u32 group_bytes = 1024) {
    return {shared >> 4 | panel_bytes >> 4 << 16, 0x40000000 | group_bytes >> 4};
}

/// d (64 x kN) = a (64x16) * b (kN x 16, transposed) + (accumulate ? d : 0); both K-major in shared memory. Asynchronous.
template <class T, u32 kN>
SAPWOOD_DEVICE void wgmma_shared(f32 (&d)[kN / 8][4], WgmmaOperand a, WgmmaOperand b, bool accumulate);
/// The same with b (16 x kN) MN-major, its columns in one panel.
template <class T, u32 kN>
SAPWOOD_DEVICE void wgmma_shared_transposed(f32 (&d)[kN / 8][4], WgmmaOperand a, WgmmaOperand b, bool accumulate);
/// d (64 x kN) += a (64x16, registers) * b (16 x kN, MN-major in shared memory). Asynchronous.
template <class T, u32 kN>
SAPWOOD_DEVICE void wgmma_registers(f32 (&d)[kN / 8][4], const u32 (&a)[4], WgmmaOperand b);

#define SAPWOOD_OUT(d, i) "+f"(d[i][0]), "+f"(d[i][1]), "+f"(d[i][2]), "+f"(d[i][3])
#define SAPWOOD_OUT_32(d) SAPWOOD_OUT(d, 0), SAPWOOD_OUT(d, 1), SAPWOOD_OUT(d, 2), SAPWOOD_OUT(d, 3)
#define SAPWOOD_OUT_64(d)                                                                                             \
    SAPWOOD_OUT(d, 0), SAPWOOD_OUT(d, 1), SAPWOOD_OUT(d, 2), SAPWOOD_OUT(d, 3), SAPWOOD_OUT(d, 4), SAPWOOD_OUT(d, 5), \
        SAPWOOD_OUT(d, 6), SAPWOOD_OUT(d, 7)
#define SAPWOOD_OUT_128(d)                                                                                               \
    SAPWOOD_OUT_64(d), SAPWOOD_OUT(d, 8), SAPWOOD_OUT(d, 9), SAPWOOD_OUT(d, 10), SAPWOOD_OUT(d, 11), SAPWOOD_OUT(d, 12), \
        SAPWOOD_OUT(d, 13), SAPWOOD_OUT(d, 14), SAPWOOD_OUT(d, 15)
#define SAPWOOD_D_32 "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15}"
#define SAPWOOD_D_64                                          \
    "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15," \
    "%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31}"
#define SAPWOOD_D_128                                                  \
    "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,"          \
    "%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31," \
    "%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47," \
    "%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63}"
// The operands behind the accumulators are numbered from A0 (shared: A0 a, A1 b, A2 accumulate, A3 and A4 the high words of a and
// b; registers: A0 … A3 a, A4 b, A5 its high word).
#define SAPWOOD_WGMMA_SHARED(Function, transposed, Type, type, n, A0, A1, A2, A3, A4)                             \
    template <>                                                                                                   \
    SAPWOOD_DEVICE void Function<Type, n>(f32(&d)[n / 8][4], WgmmaOperand a, WgmmaOperand b, bool accumulate) {   \
        asm volatile("{ .reg .pred p; .reg .b64 a, b; setp.ne.u32 p, " A2 ", 0; mov.b64 a, {" A0 ", " A3          \
                     "}; "                                                                                        \
                     "mov.b64 b, {" A1 ", " A4 "}; wgmma.mma_async.sync.aligned.m64n" #n "k16.f32." type "." type \
                     " " SAPWOOD_D_##n ", a, b, p, 1, 1, 0, " transposed "; }"                                    \
                     : SAPWOOD_OUT_##n(d)                                                                         \
                     : "r"(a.low), "r"(b.low), "r"(static_cast<u32>(accumulate)), "r"(a.high), "r"(b.high)        \
                     : "memory");                                                                                 \
    }
#define SAPWOOD_WGMMA_REGISTERS(Type, type, n, A0, A1, A2, A3, A4, A5)                                                           \
    template <>                                                                                                                  \
    SAPWOOD_DEVICE void wgmma_registers<Type, n>(f32(&d)[n / 8][4], const u32(&a)[4], WgmmaOperand b) {                          \
        asm volatile("{ .reg .b64 b; mov.b64 b, {" A4 ", " A5 "}; wgmma.mma_async.sync.aligned.m64n" #n "k16.f32." type "." type \
                     " " SAPWOOD_D_##n ", {" A0 "," A1 "," A2 "," A3 "}, b, 1, 1, 1, 1; }"                                       \
                     : SAPWOOD_OUT_##n(d)                                                                                        \
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b.low), "r"(b.high)                                       \
                     : "memory");                                                                                                \
    }
SAPWOOD_WGMMA_SHARED(wgmma_shared, "0", Fp16, "f16", 64, "%32", "%33", "%34", "%35", "%36")
SAPWOOD_WGMMA_SHARED(wgmma_shared_transposed, "1", Fp16, "f16", 64, "%32", "%33", "%34", "%35", "%36")
SAPWOOD_WGMMA_SHARED(wgmma_shared_transposed, "1", Fp16, "f16", 32, "%16", "%17", "%18", "%19", "%20")
SAPWOOD_WGMMA_SHARED(wgmma_shared, "0", Bf16, "bf16", 64, "%32", "%33", "%34", "%35", "%36")
SAPWOOD_WGMMA_SHARED(wgmma_shared_transposed, "1", Bf16, "bf16", 64, "%32", "%33", "%34", "%35", "%36")
SAPWOOD_WGMMA_SHARED(wgmma_shared_transposed, "1", Bf16, "bf16", 32, "%16", "%17", "%18", "%19", "%20")
SAPWOOD_WGMMA_SHARED(wgmma_shared, "0", Fp16, "f16", 128, "%64", "%65", "%66", "%67", "%68")
SAPWOOD_WGMMA_SHARED(wgmma_shared, "0", Bf16, "bf16", 128, "%64", "%65", "%66", "%67", "%68")
SAPWOOD_WGMMA_REGISTERS(Fp16, "f16", 64, "%32", "%33", "%34", "%35", "%36", "%37")
SAPWOOD_WGMMA_REGISTERS(Bf16, "bf16", 64, "%32", "%33", "%34", "%35", "%36", "%37")
SAPWOOD_WGMMA_REGISTERS(Fp16, "f16", 128, "%64", "%65", "%66", "%67", "%68", "%69")
SAPWOOD_WGMMA_REGISTERS(Bf16, "bf16", 128, "%64", "%65", "%66", "%67", "%68", "%69")
#undef SAPWOOD_WGMMA_SHARED
#undef SAPWOOD_WGMMA_REGISTERS
#undef SAPWOOD_D_32
#undef SAPWOOD_D_64
#undef SAPWOOD_D_128
#undef SAPWOOD_OUT
#undef SAPWOOD_OUT_32
#undef SAPWOOD_OUT_64
#undef SAPWOOD_OUT_128

/// After the wait: keeps the compiler from reading accumulators before it.
template <u32 kBlocks>
SAPWOOD_DEVICE void wgmma_settled(f32 (&d)[kBlocks][4]) {
    SAPWOOD_UNROLL for (u32 i = 0; i < kBlocks;
                        ++i) asm volatile("" : "+f"(d[i][0]), "+f"(d[i][1]), "+f"(d[i][2]), "+f"(d[i][3])::"memory");
}

}  // namespace sapwood::kernel
