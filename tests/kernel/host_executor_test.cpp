// SPDX-License-Identifier: Apache-2.0
// The executor as a tool for finding defects: right kernels give equal bits under every schedule, wrong ones are caught, and the
// process goes on after either.
#include <doctest/doctest.h>

#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "isa/host_runtime.h"
#include "sapwood/error.h"
#include "support/host_kernel.h"

using namespace sapwood;
using namespace sapwood::support;

namespace {

/// A warp copies tiles into a ring of two stages, two warps multiply and add. -DNO_FULL: the consumers do not wait for a stage to
/// be full. -DNO_EMPTY: the producer does not wait for it to be empty. -DNO_SYNC: no block_sync after the barriers are made.
const std::string kRing = R"(
    struct Params { const f32* in; f32* out; u32 tiles; };
    SAPWOOD_ENTRY(test_kernel, Params, 96, 1) {
        constexpr u32 kStages = 2, kTile = 128;
        const u32 base = shared_address(shared_memory()), t = thread_id();
        const f32* tiles = reinterpret_cast<const f32*>(shared_memory() + 64);
        const auto full = [&](u32 s) { return base + s * 8; };
        const auto empty = [&](u32 s) { return base + 32 + s * 8; };
        if (t == 0) {
            for (u32 s = 0; s < kStages; s++) {
                mbarrier_init(full(s), 32);
                mbarrier_init(empty(s), 2);
            }
        }
    #ifndef NO_SYNC
        block_sync();
    #endif
        const u32 warp = warp_id(), lane = lane_id();
        f32 sum = 0;
        for (u32 i = 0; i < params.tiles; i++) {
            const u32 stage = i % kStages, parity = i / kStages & 1;
            if (warp == 0) {
    #ifndef NO_EMPTY
                mbarrier_wait(empty(stage), parity ^ 1);
    #endif
                cp_async_16(base + 64 + (stage * kTile + lane * 4) * 4, params.in + i * kTile + lane * 4, 16);
                cp_async_arrive(full(stage));
            } else {
    #ifndef NO_FULL
                mbarrier_wait(full(stage), parity);
    #endif
                for (u32 j = 0; j < 4; j++) sum = fma_f32(tiles[stage * kTile + j * 32 + lane], static_cast<f32>(warp), sum);
                for (u32 mask = 16; mask != 0; mask /= 2) sum += shfl_xor(sum, mask) * 0.25f;
                warp_sync();
                if (lane == 0) mbarrier_arrive(empty(stage));
            }
        }
        store_f32(params.out + block_id() * 96 + t, sum);
    })";

struct RingParams {
    const float* in;
    float* out;
    std::uint32_t tiles;
};

std::vector<float> run_ring(std::uint64_t seed, std::vector<std::string> options = {}) {
    std::vector<float> in(128 * 16), out(96 * 4, -1);
    for (std::size_t i = 0; i < in.size(); i++) in[i] = std::sin(static_cast<float>(i) * 0.37f);
    const RingParams params{in.data(), out.data(), 16};
    run_on_host(kRing, {.grid = 4, .block = 96, .shared_bytes = 64 + 2 * 512}, params, seed, std::move(options));
    return out;
}

bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
    return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

/// How many of eight seeds show that something is wrong.
int caught(const std::string& option) {
    const std::vector<float> right = run_ring(0);
    int seen = 0;
    for (std::uint64_t seed = 0; seed < 8; seed++) {
        try {
            seen += !same_bits(run_ring(seed, {option}), right);
        } catch (const Error& e) {
            CHECK(e.code() == ErrorCode::kInternal);
            seen++;
        }
    }
    return seen;
}

struct Out {
    std::uint32_t* out;
};

Error error_of(const std::string& body, jit::LaunchShape shape = {.grid = 1, .block = 64, .shared_bytes = 256},
               std::uint64_t seed = 0) {
    std::vector<std::uint32_t> out(1024);
    try {
        run_on_host("struct Params { u32* out; };\nSAPWOOD_ENTRY(test_kernel, Params, 256, 1) {" + body + "}", shape,
                    Out{out.data()}, seed);
    } catch (const Error& e) {
        return e;
    }
    return Error(ErrorCode::kIo, "no error");
}

bool says(const Error& e, const std::string& what) { return std::string(e.what()).find(what) != std::string::npos; }

}  // namespace

TEST_CASE("a race-free kernel gives equal bits under every schedule") {
    const std::vector<float> right = run_ring(0);
    CHECK(std::isfinite(right[40]));
    CHECK(right[40] != right[80]);
    for (std::uint64_t seed = 1; seed <= 8; seed++) CHECK(same_bits(run_ring(seed), right));
}

TEST_CASE("a missing barrier is caught") {
    CHECK(caught("-DNO_FULL") > 0);
    CHECK(caught("-DNO_EMPTY") > 0);
    CHECK(caught("-DNO_SYNC") > 0);
}

TEST_CASE("barriers that nobody completes are errors that name the threads") {
    const auto kernel = [](const char* body, std::uint64_t seed) {
        return error_of(body, {.grid = 3, .block = 64, .shared_bytes = 256}, seed);
    };
    for (std::uint64_t seed : {0, 1, 2}) {
        Error e = kernel("if (thread_id() < 40) block_sync();", seed);
        CHECK(e.code() == ErrorCode::kInternal);
        CHECK(says(e, "cannot go on"));
        CHECK(says(e, "threads 0-39 wait at block_sync, 40 of 64 there"));
        CHECK(says(e, "threads 40-63 exited"));
        CHECK(says(e, " of 3"));

        e = kernel(
            "if (thread_id() == 0) mbarrier_init(1024, 3); block_sync(); mbarrier_arrive(1024); block_sync();"
            "if (thread_id() >= 32) mbarrier_wait(1024, thread_id() < 63 ? 0 : 1);",
            seed);
        CHECK(says(e, "thread 63 wait at mbarrier_wait(shared 1024, parity 1), arrivals missing 2"));

        e = kernel("if (thread_id() == 5) named_sync(3, 32); warp_sync();", seed);
        CHECK(says(e, "thread 5 wait at named_sync(3), 1 of 32 there"));
        CHECK(says(e, "threads 0-4 wait for their warp at warp_sync"));

        e = kernel("if (thread_id() == 0) mbarrier_init(1024, 1); block_sync(); while (!mbarrier_try(1024, 0)) {}", seed);
        CHECK(says(e, "threads 0-63 wait at mbarrier_wait(shared 1024, parity 0), arrivals missing 1"));
        CHECK(!std::isnan(run_ring(seed)[40]));  // and the executor goes on
    }
}

TEST_CASE("misuse is an error that names the thread") {
    CHECK(says(error_of("if (thread_id() != 37) warp_sync();"), "thread 37 (warp 1, lane 5) of block 0"));
    CHECK(says(error_of("if (lane_id() < 9) warp_sync(); else (void)warp_any(true);"),
               "calls warp_any while other lanes of its warp wait at warp_sync"));
    CHECK(says(error_of("mbarrier_arrive(1024);"), "no mbarrier was initialised"));
    CHECK(says(error_of("mbarrier_init(1024 + 256, 1);"), "not 8 aligned bytes"));
    CHECK(says(error_of("mbarrier_init(0, 1);"), "not 8 aligned bytes"));
    CHECK(says(error_of("u32 r[4]; ldmatrix_x4(r, 1024 + 248);"), "outside the block's dynamic shared memory"));
    CHECK(says(error_of("u32 r[4]; ldmatrix_x4(r, 1032);"), "misaligned shared address"));
    CHECK(says(error_of("cp_async_16(1024 + 8, params.out, 0);"), "not 16 aligned bytes"));
    CHECK(says(error_of("cp_async_16(1024, params.out, 8);"), "8 bytes: 0 or 16"));
    CHECK(says(error_of("store_8(params.out + 1, 1, 2);"), "misaligned global pointer"));
    CHECK(says(error_of("(void)load_readonly_16(params.out + 1);"), "misaligned global pointer"));
    CHECK(says(error_of("named_sync(16, 32);"), "barrier id outside 1..15"));
    CHECK(says(error_of("named_sync(1, 48);"), "not whole warps"));
    CHECK(says(error_of("named_sync(1, warp_id() ? 32 : 64);"), "brings barrier 1 a count of"));
    CHECK(says(error_of("if (lane_id() < 16) named_sync(1, 32);"), "only some lanes"));
    CHECK(says(error_of("(void)shared_address(params.out);"), "outside the block's dynamic shared memory"));
#if !defined(SAPWOOD_HOST_ASAN)  // which ends the process at such a store
    CHECK(says(error_of("*const_cast<volatile u8*>(shared_memory() + 256) = 0;"), "wrote outside its 256 bytes"));
#endif
    CHECK(error_of("", {.grid = 1, .block = 33}).code() == ErrorCode::kInvalidArgument);
    CHECK(error_of("", {.grid = 1, .block = 512}).code() == ErrorCode::kInvalidArgument);
    CHECK(error_of("", {.grid = 1, .block = 64}).code() == ErrorCode::kIo);  // none
}

TEST_CASE("atomics reach across blocks") {
    // The last block to arrive adds up what all have written: the merge of the decode kernel.
    const std::string source = R"(
        struct Params { f32* partial; f32* out; u32* counters; };
        SAPWOOD_ENTRY(test_kernel, Params, 32, 1) {
            store_f32(params.partial + block_id() * 32 + lane_id(), static_cast<f32>(block_id() + lane_id()));
            atomic_add_relaxed(params.counters + 1, 2);
            block_sync();
            u32 last = 0;
            if (lane_id() == 0) last = atomic_inc_acq_rel(params.counters, grid_size() - 1) == grid_size() - 1;
            if (shfl(last, 0) == 0) return;
            f32 sum = 0;
            for (u32 b = 0; b < grid_size(); b++) sum += load_shared_by_blocks(params.partial + b * 32 + lane_id());
            store_f32(params.out + lane_id(), load_shared_by_blocks(params.out + lane_id()) + sum);
        })";
    constexpr std::uint32_t kBlocks = 200;
    for (std::uint64_t seed : {0, 7}) {
        std::vector<float> partial(kBlocks * 32), out(32);
        std::uint32_t counters[2] = {};
        struct {
            float *partial, *out;
            std::uint32_t* counters;
        } params{partial.data(), out.data(), counters};
        for (int launch = 1; launch <= 2; launch++) {
            run_on_host(source, {.grid = kBlocks, .block = 32}, params, seed);
            CHECK(counters[0] == 0);  // resets itself
            CHECK(counters[1] == kBlocks * 64 * launch);
            for (std::uint32_t i = 0; i < 32; i++)
                CHECK(out[i] == static_cast<float>(launch * (kBlocks * i + kBlocks * (kBlocks - 1) / 2)));
        }
    }
}

TEST_CASE("blocks may wait for each other's work, and give up when one fails") {
    // Work is drawn, so that what is waited for is in the hands of a block that runs: the merge of the decode kernel again.
    const std::string body = R"(
        u32 mine = 0;
        for (;;) {
            u32 ticket = 0;
            if (lane_id() == 0) ticket = atomic_add_relaxed(params.out, 1);
            ticket = shfl(ticket, 0);
            if (ticket >= 40) break;
            MISCHIEF
            store_4(params.out + 4 + ticket, ticket);
            mine++;
        }
        if (thread_id() == 0) {
            atomic_add_release(params.out + 1, mine);
            while (load_acquire(params.out + 1) < 40) {}
        }
        block_sync();
        if (lane_id() == 0) {
            u32 sum = 0;
            for (u32 i = 0; i < 40; i++) sum += load_readonly_4(params.out + 4 + i);
            store_4(params.out + 100 + block_id(), sum);
        })";
    const auto source = [&](const std::string& mischief) {
        std::string text = body;
        text.replace(text.find("MISCHIEF"), 8, mischief);
        return "struct Params { u32* out; };\nSAPWOOD_ENTRY(test_kernel, Params, 32, 1) {" + text + "}";
    };
    const auto run = [&](const std::string& mischief, unsigned os_threads, std::uint64_t seed) {
        std::vector<std::uint32_t> out(200);
        const Out params{out.data()};
        host::load(compile_for_host(source(mischief)), {.schedule_seed = seed, .os_threads = os_threads})
            ->launch({.grid = 8, .block = 32}, &params, sizeof(params), nullptr);
        return out;
    };
    for (unsigned os_threads : {1u, 2u, 4u}) {
        for (std::uint64_t seed : {0, 3}) {
            const auto out = run("", os_threads, seed);
            for (int b = 0; b < 8; b++) CHECK(out[100 + b] == 39 * 40 / 2);
            CHECK_THROWS_WITH_AS(run("if (ticket == 20) named_sync(1, 48);", os_threads, seed),
                                 doctest::Contains("not whole warps"), Error);
        }
    }
    // Nobody ever does item 20. Alone, a block knows at once that this leads nowhere.
    CHECK_THROWS_WITH_AS(run("if (ticket == 20) continue;", 1, 0),
                         doctest::Contains("thread 0 wait for other blocks at load_acquire"), Error);
    CHECK_THROWS_WITH_AS(run("if (ticket == 20) continue;", 2, 0),
                         doctest::Contains("thread 0 wait for other blocks at load_acquire"), Error);
}

TEST_CASE("kernels are loaded side by side and launched from several threads") {
    std::vector<std::unique_ptr<jit::LoadedKernel>> kernels;
    for (int i = 0; i < 6; i++) {
        const auto& artifact = compile_for_host(
            "struct Params { u32* out; };\nSAPWOOD_ENTRY(test_kernel, Params, 64, 1) { block_sync(); store_4(params.out + "
            "thread_id(), WHO); }",
            {"-DWHO=" + std::to_string(i % 3)});
        kernels.push_back(host::load(artifact, {.schedule_seed = static_cast<std::uint64_t>(i)}));
        if (i == 4) kernels.erase(kernels.begin());  // its descriptor and its addresses come again
    }
    REQUIRE(kernels.size() == 5);
    std::vector<std::vector<std::uint32_t>> outs(5, std::vector<std::uint32_t>(64));
    std::vector<std::thread> threads;
    for (int i = 0; i < 5; i++) {
        threads.emplace_back([&, i] {
            for (int n = 0; n < 20; n++) {
                const Out params{outs[i].data()};
                kernels[i]->launch({.grid = 1, .block = 64}, &params, sizeof(params), nullptr);
            }
        });
    }
    for (std::thread& t : threads) t.join();
    for (std::uint32_t i = 0; i < 5; i++) CHECK(outs[i] == std::vector<std::uint32_t>(64, (i + 1) % 3));
}

TEST_CASE("what the compiler says reaches the error") {
    try {
        compile_for_host("SAPWOOD_ENTRY(test_kernel, NoSuchType, 32, 1) {}");
        FAIL("compiled");
    } catch (const Error& e) {
        CHECK(e.code() == ErrorCode::kCompileFailed);
        CHECK(says(e, "kernel test_kernel for host does not compile"));
        CHECK(e.detail().find("NoSuchType") != std::string::npos);
        CHECK(e.detail().find("-std=c++20") != std::string::npos);
    }
    host::Compiler compiler;
    CHECK(compiler.identity().find('/') == std::string::npos);
    CHECK(compile_for_host("struct Params { u32* out; };\nSAPWOOD_ENTRY(test_kernel, Params, 64, 1) {}").log == "");
}

TEST_CASE("without a compiler the error lists what was tried") {
    const std::string path = std::getenv("PATH");
    const char* cxx = std::getenv("CXX");
    const std::string kept = cxx == nullptr ? "" : cxx;
    setenv("PATH", "/nonexistent", 1);
    setenv("CXX", "no-such-compiler -m64", 1);
    host::Compiler compiler;
    CHECK(compiler.path().empty());
    try {
        compiler.identity();
        FAIL("found one");
    } catch (const Error& e) {
        CHECK(e.code() == ErrorCode::kNoCompiler);
        CHECK(says(e, "tried: no-such-compiler, "));
        CHECK(says(e, "c++, g++, clang++;"));
    }
    setenv("PATH", path.c_str(), 1);
    kept.empty() ? unsetenv("CXX") : setenv("CXX", kept.c_str(), 1);
    CHECK(!compiler.path().empty());
}
