// SPDX-License-Identifier: Apache-2.0
// Every primitive of templates/isa/host.h and host_memory.h against its definition in the PTX ISA, run by the executor.
#include <doctest/doctest.h>

#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <random>
#include <vector>

#include "isa/host.h"
#include "isa/host_memory.h"
#include "support/half.h"
#include "support/host_kernel.h"

using namespace sapwood;
using namespace sapwood::support;

namespace {

constexpr std::uint32_t kPoison = 0xffffffff;

template <class T>
constexpr DType kDType = DType::fp16;
template <>
constexpr DType kDType<kernel::Bf16> = DType::bf16;
template <class T>
constexpr const char* kElement = "-DELEMENT=Fp16";
template <>
constexpr const char* kElement<kernel::Bf16> = "-DELEMENT=Bf16";

std::vector<std::uint16_t> random_halves(DType dtype, std::size_t count, unsigned seed) {
    std::mt19937 random(seed);
    std::uniform_real_distribution<float> uniform(-2, 2);
    std::vector<std::uint16_t> values(count);
    for (auto& v : values) v = round_to(dtype, uniform(random));
    return values;
}

}  // namespace

TEST_CASE_TEMPLATE("ldmatrix and mma are matrix products", T, kernel::Fp16, kernel::Bf16) {
    // A is 16x16 by rows. B is 16x16 and kept both ways: by rows of k (as V: transposing load) and by rows of n (as K: plain load).
    const std::string source = R"(
        struct Params { const u32* a; const u32* b; const u32* b_by_n; f32* d; f32* d_by_n; u32* fragments; };
        SAPWOOD_ENTRY(test_kernel, Params, 32, 1) {
            const u32 lane = lane_id(), base = shared_address(shared_memory());
            u32* shared = reinterpret_cast<u32*>(shared_memory());
            for (u32 i = lane; i < 128; i += 32) {
                shared[i] = params.a[i];
                shared[128 + i] = params.b[i];
                shared[256 + i] = params.b_by_n[i];
            }
            block_sync();
            u32 a[4], b[4], t[4];
            ldmatrix_x4(a, base + lane % 16 * 32 + lane / 16 * 16);
            ldmatrix_x4_trans(b, base + 512 + lane % 16 * 32 + lane / 16 * 16);
            ldmatrix_x4(t, base + 1024 + (lane % 8 + lane / 16 * 8) * 32 + lane / 8 % 2 * 16);
            for (u32 i = 0; i < 4; i++) {
                store_4(params.fragments + (i * 32 + lane), a[i]);
                store_4(params.fragments + 128 + (i * 32 + lane), b[i]);
            }
            for (u32 n = 0; n < 2; n++) {
                f32 d[4] = {1, 1, 1, 1}, e[4] = {1, 1, 1, 1};
                mma_16x8x16<ELEMENT>(d, a, b[n * 2], b[n * 2 + 1]);
                mma_16x8x16<ELEMENT>(e, a, t[n * 2], t[n * 2 + 1]);
                for (u32 i = 0; i < 4; i++) {
                    const u32 at = (lane / 4 + i / 2 * 8) * 16 + n * 8 + lane % 4 * 2 + i % 2;
                    store_f32(params.d + at, d[i]);
                    store_f32(params.d_by_n + at, e[i]);
                }
            }
        })";
    struct Params {
        const std::uint16_t *a, *b, *b_by_n;
        float *d, *d_by_n;
        std::uint32_t* fragments;
    };
    const DType dtype = kDType<T>;
    for (std::uint64_t seed : {0, 1, 2, 3}) {
        const auto a = random_halves(dtype, 256, 1), b = random_halves(dtype, 256, 2);
        std::vector<std::uint16_t> b_by_n(256);
        for (int k = 0; k < 16; k++)
            for (int n = 0; n < 16; n++) b_by_n[n * 16 + k] = b[k * 16 + n];
        std::vector<float> d(256, NAN), d_by_n(256, NAN);
        std::vector<std::uint32_t> fragments(256);
        const Params params{a.data(), b.data(), b_by_n.data(), d.data(), d_by_n.data(), fragments.data()};
        run_on_host(source, {.grid = 1, .block = 32, .shared_bytes = 1536}, params, seed, {kElement<T>});

        for (int m = 0; m < 16; m++) {
            for (int n = 0; n < 16; n++) {
                double exact = 1;
                for (int k = 0; k < 16; k++) exact += double{widen(dtype, a[m * 16 + k])} * widen(dtype, b[k * 16 + n]);
                CHECK(d[m * 16 + n] == doctest::Approx(exact).epsilon(1e-5));
            }
        }
        CHECK(d == d_by_n);
        for (int i = 0; i < 4; i++) {
            for (int lane = 0; lane < 32; lane++) {
                const int row = lane / 4, column = lane % 4 * 2, down = i % 2 * 8, right = i / 2 * 8;
                const auto pair = [](std::uint16_t low, std::uint16_t high) { return low | std::uint32_t{high} << 16; };
                CHECK(fragments[i * 32 + lane] ==
                      pair(a[(row + down) * 16 + column + right], a[(row + down) * 16 + column + right + 1]));
                CHECK(fragments[128 + i * 32 + lane] ==
                      pair(b[(column + down) * 16 + row + right], b[(column + 1 + down) * 16 + row + right]));
            }
        }
    }
}

TEST_CASE("all values of fp16 and bf16 widen exactly, and narrow back") {
    int wrong = 0;
    for (std::uint32_t first = 0; first < 0x10000; first += 8) {
        alignas(32) std::uint16_t bits[8];
        alignas(32) float half[8], brain[8];
        for (std::uint32_t i = 0; i < 8; i++) bits[i] = static_cast<std::uint16_t>(first + i);
        kernel::host_widen8<kernel::Fp16>(bits, half);
        kernel::host_widen8<kernel::Bf16>(bits, brain);
        for (int i = 0; i < 8; i++) {
            const float h = from_fp16(bits[i]), b = from_bf16(bits[i]);
            wrong += std::isnan(h) ? !std::isnan(half[i]) : std::memcmp(&h, &half[i], 4) != 0;
            wrong += std::isnan(b) ? !std::isnan(brain[i]) : std::memcmp(&b, &brain[i], 4) != 0;
            wrong += !std::isnan(h) && kernel::host_narrow(kernel::Fp16{}, h) != bits[i];
            wrong += !std::isnan(b) && kernel::host_narrow(kernel::Bf16{}, b) != bits[i];
        }
    }
    CHECK(wrong == 0);
}

TEST_CASE("all values of e4m3 widen exactly to fp16 and bf16, wherever they lie in a word") {
    int wrong = 0;
    for (std::uint32_t byte = 0; byte < 256; byte++) {
        const float value = from_e4m3(static_cast<std::uint8_t>(byte));
        const std::uint32_t others = 0x38b80140 + byte * 0x01030507u;
        for (int at = 0; at < 4; at++) {
            const std::uint32_t word = (others & ~(0xffu << at * 8)) | byte << at * 8;
            const auto check = [&](auto type, DType dtype) {
                std::uint32_t halves[2];
                kernel::widen_e4m3<decltype(type)>(word, halves[0], halves[1]);
                const float found = widen(dtype, static_cast<std::uint16_t>(halves[at / 2] >> at % 2 * 16));
                wrong += std::isnan(value) ? !std::isnan(found) : std::memcmp(&found, &value, 4) != 0;  // -0 stays -0
            };
            check(kernel::Fp16{}, DType::fp16);
            check(kernel::Bf16{}, DType::bf16);
        }
        wrong += !std::isnan(value) && to_e4m3(value) != byte;
    }
    CHECK(wrong == 0);
    CHECK(from_e4m3(0x7e) == 448);
    CHECK(from_e4m3(0x01) == 0x1p-9f);
    CHECK(from_e4m3(0xb8) == -1);
    CHECK(to_e4m3(1.0625f) == 0x38);  // halfway between 1 and 1.125: to even
    CHECK(to_e4m3(1.1875f) == 0x3a);
    CHECK(to_e4m3(-1e6f) == 0xfe);
    CHECK(kernel::even_then_odd_bytes(0x44332211) == 0x44223311);
}

TEST_CASE("pack2 rounds to nearest even") {
    int wrong = 0;
    const auto check = [&](std::uint32_t bits) {
        const float x = kernel::bits_f32(bits), y = kernel::bits_f32(bits * 2654435761u);
        const std::uint32_t half = kernel::pack2<kernel::Fp16>(x, y), brain = kernel::pack2<kernel::Bf16>(x, y);
        const auto differs = [](std::uint32_t found, std::uint16_t expected, float from) {
            return std::isnan(from) ? found != 0x7fff : found != expected;
        };
        wrong += differs(half & 0xffff, to_fp16(x), x) + differs(half >> 16, to_fp16(y), y);
        wrong += differs(brain & 0xffff, to_bf16(x), x) + differs(brain >> 16, to_bf16(y), y);
    };
    for (std::uint64_t bits = 0; bits <= 0xffffffff; bits += 4099) check(static_cast<std::uint32_t>(bits));
    for (std::uint32_t h = 0; h < 0x10000; h++) {  // every tie, and its neighbours
        const std::uint32_t tie = kernel::f32_bits(from_fp16(static_cast<std::uint16_t>(h))) + 0x1000;
        for (std::uint32_t near : {tie - 1, tie, tie + 1, (h << 16 | 0x7fff), (h << 16 | 0x8000), (h << 16 | 0x8001)}) check(near);
    }
    CHECK(wrong == 0);
}

TEST_CASE("arithmetic follows the PTX rules") {
    using namespace kernel;
    const float inf = infinity(), nan = std::numeric_limits<float>::quiet_NaN();
    CHECK(exp2_approx(-inf) == 0);
    CHECK(exp2_approx(inf) == inf);
    CHECK(exp2_approx(10) == 1024);
    CHECK(exp2_approx(-130) == 0);  // .ftz
    CHECK(exp2_approx(0.5f) == doctest::Approx(1.41421356));
    CHECK(log2_approx(8) == 3);
    CHECK(log2_approx(0) == -inf);
    CHECK(std::isnan(log2_approx(-1)));
    CHECK(reciprocal(4) == 0.25f);
    CHECK(reciprocal(-0.0f) == -inf);
    CHECK(reciprocal(1e-40f) == inf);  // .ftz
    CHECK(reciprocal(inf) == 0);
    CHECK(max_f32(nan, 1) == 1);
    CHECK(max_f32(-inf, nan) == -inf);
    CHECK(std::isnan(max_f32(nan, nan)));
    CHECK(!std::signbit(max_f32(-0.0f, 0.0f)));
    CHECK(max_f32(2, 3) == 3);
    CHECK(fma_f32(1 + 0x1p-12f, 1 - 0x1p-12f, -1) == -0x1p-24f);
    CHECK(bits_f32(f32_bits(-1.5f)) == -1.5f);
}

TEST_CASE("shuffles and votes") {
    const std::string source = R"(
        struct Params { u32* out; };
        SAPWOOD_ENTRY(test_kernel, Params, 64, 1) {
            const u32 t = thread_id(), warp = warp_id(), lane = lane_id();
            u32* out = params.out + t * 8;
            store_4(out + 0, f32_bits(shfl_xor(static_cast<f32>(t), 5)));
            store_4(out + 1, shfl(t * 3, (lane + 7) % 32));
            store_4(out + 2, shfl(t, 4));
            store_4(out + 3, warp_any(warp == 1 && lane == 31));
            store_4(out + 4, warp_any(false));
            store_4(out + 5, warp * 100 + lane);
            store_4(out + 6, warp_ballot(lane % 3 == warp));
            store_4(out + 7, leading_zeros(t >> 3));
        })";
    for (std::uint64_t seed : {0, 5}) {
        std::vector<std::uint32_t> out(64 * 8);
        struct {
            std::uint32_t* out;
        } params{out.data()};
        run_on_host(source, {.grid = 1, .block = 64}, params, seed);
        for (std::uint32_t t = 0; t < 64; t++) {
            const std::uint32_t warp = t / 32, lane = t % 32, *o = &out[t * 8];
            CHECK(kernel::bits_f32(o[0]) == static_cast<float>(t ^ 5));
            CHECK(o[1] == (warp * 32 + (lane + 7) % 32) * 3);
            CHECK(o[2] == warp * 32 + 4);
            CHECK(o[3] == warp);
            CHECK(o[4] == 0);
            CHECK(o[5] == warp * 100 + lane);
            CHECK(o[6] == (warp == 0 ? 0x49249249u : 0x92492492u));
            CHECK(o[7] == static_cast<std::uint32_t>(std::countl_zero(t >> 3)));
        }
    }
}

TEST_CASE("mbarriers count phases") {
    const std::string source = R"(
        struct Params { u32* out; };
        SAPWOOD_ENTRY(test_kernel, Params, 64, 1) {
            const u32 bar = shared_address(shared_memory()) + 8, t = thread_id();
            if (t == 0) {
                mbarrier_init(bar, 3);
                mbarrier_wait(bar, 1);  // fresh: passes
                store_4(params.out + 0, mbarrier_try(bar, 0));
                mbarrier_arrive(bar);
                mbarrier_arrive(bar);
                store_4(params.out + 1, mbarrier_try(bar, 0));
                mbarrier_arrive(bar);
                store_4(params.out + 2, mbarrier_try(bar, 0));
                store_4(params.out + 3, mbarrier_try(bar, 1));
                mbarrier_init(bar, 32);
            }
            block_sync();
            // One warp brings, the other waits, 10 phases each way.
            for (u32 i = 0; i < 10; i++) {
                if (t < 32) {
                    if (t == 0) store_4(params.out + 4, i + 1);
                    warp_sync();
                    mbarrier_arrive(bar);
                } else {
                    mbarrier_wait(bar, i & 1);
                    store_4(params.out + 5 + i, load_readonly_4(params.out + 4));
                }
                block_sync();
            }
        })";
    for (std::uint64_t seed : {0, 1, 2}) {
        std::vector<std::uint32_t> out(15);
        struct {
            std::uint32_t* out;
        } params{out.data()};
        run_on_host(source, {.grid = 1, .block = 64, .shared_bytes = 64}, params, seed);
        CHECK(out == std::vector<std::uint32_t>{0, 0, 1, 0, 10, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10});
    }
}

TEST_CASE("asynchronous copies fill with zeros and land late") {
    const std::string source = R"(
        struct Params { const U32x4* from; u32* early; u32* late; };
        SAPWOOD_ENTRY(test_kernel, Params, 32, 1) {
            u32* shared = reinterpret_cast<u32*>(shared_memory());
            const u32 base = shared_address(shared), bar = base + 512, t = thread_id();
            if (t == 0) mbarrier_init(bar, 32);
            block_sync();
            cp_async_16(base + t * 16, params.from + t, t % 2 ? 16 : 0);
            cp_async_arrive(bar);
            for (u32 i = 0; i < 4; i++) store_4(params.early + (t * 4 + i), shared[t * 4 + i]);
            mbarrier_wait(bar, 0);
            for (u32 i = 0; i < 4; i++) store_4(params.late + (t * 4 + i), shared[t * 4 + i]);
        })";
    bool sometimes_early = false;
    for (std::uint64_t seed = 0; seed < 9; seed++) {
        std::vector<kernel::U32x4> from(32);
        for (std::uint32_t i = 0; i < 32; i++) from[i] = {i, i + 100, i + 200, i + 300};
        std::vector<std::uint32_t> early(128), late(128);
        struct {
            const kernel::U32x4* from;
            std::uint32_t *early, *late;
        } params{from.data(), early.data(), late.data()};
        run_on_host(source, {.grid = 1, .block = 32, .shared_bytes = 520}, params, seed);
        for (std::uint32_t i = 0; i < 128; i++) {
            const std::uint32_t expected = i / 4 % 2 ? i / 4 + i % 4 * 100 : 0;
            CHECK(late[i] == expected);
            if (seed == 0) {
                CHECK(early[i] == kPoison);
            } else {
                CHECK((early[i] == kPoison || early[i] == expected));
                sometimes_early |= early[i] != kPoison;
            }
        }
    }
    CHECK(sometimes_early);  // a copy into what is still being read has to show, too
}

TEST_CASE("named barriers are independent of each other") {
    // Warps 0 and 1 meet at barrier 1, three times as often as warps 2 and 3 at barrier 2.
    const std::string source = R"(
        struct Params { u32* out; };
        SAPWOOD_ENTRY(test_kernel, Params, 128, 1) {
            u32* shared = reinterpret_cast<u32*>(shared_memory());
            const u32 t = thread_id(), pair = t / 64, rounds = pair ? 10 : 30;
            shared[t] = 0;
            named_sync(pair + 1, 64);
            u32 sum = 0;
            for (u32 i = 0; i < rounds; i++) {
                shared[t] = i * 1000 + t;
                named_sync(pair + 1, 64);
                sum += shared[t ^ 63];
                named_sync(pair + 1, 64);
            }
            store_4(params.out + t, sum);
        })";
    for (std::uint64_t seed : {0, 1, 2, 3}) {
        std::vector<std::uint32_t> out(128);
        struct {
            std::uint32_t* out;
        } params{out.data()};
        run_on_host(source, {.grid = 1, .block = 128, .shared_bytes = 512}, params, seed);
        for (std::uint32_t t = 0; t < 128; t++) {
            const std::uint32_t rounds = t / 64 ? 10 : 30;
            CHECK(out[t] == rounds * (rounds - 1) / 2 * 1000 + rounds * (t ^ 63));
        }
    }
}
