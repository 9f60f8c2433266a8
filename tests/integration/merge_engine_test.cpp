// SPDX-License-Identifier: Apache-2.0
// A merge's kernel is one like any other: prepared by problem or key, counted, listed, packed, refused once the engine is sealed.
#include <doctest/doctest.h>

#include "engine/pack.h"
#include "jit/bundle.h"
#include "kernel/key_text.h"
#include "sapwood/sapwood.h"
#include "support/cache_fixture.h"

using namespace sapwood;
using namespace sapwood::test;

namespace {

constexpr MergeProblem kProblem = {
    .heads = 2, .head_dim = 8, .part_dtype = StateDType::fp32, .out_dtype = StateDType::fp32, .layout = MergeLayout::separate};

/// Two parts of three rows; the result is their mean.
struct Pair {
    alignas(16) float first[48], second[48], out[48] = {};
    float lse[6] = {};
    Pair() {
        for (int i = 0; i < 48; ++i) first[i] = 1, second[i] = 3;
    }
    MergeTensors tensors() {
        MergeTensors all;
        all.parts[0] = {.out = first, .lse = lse};
        all.parts[1] = {.out = second, .lse = lse};
        all.count = 2, all.out = out;
        return all;
    }
};

ErrorCode code_of(const std::function<void()>& call) {
    try {
        call();
    } catch (const Error& error) {
        return error.code();
    }
    return ErrorCode::kInternal;
}

}  // namespace

TEST_CASE("merge engine: sealed engines merge what was prepared and refuse the rest; calls are counted") {
    TempDir dir;
    Engine engine({.target = "host", .cache_dir = dir.path() / "cache", .compile = CompilePolicy::background});
    const KernelReport report = engine.prepare_merge(kProblem);
    CHECK(report.key == "merge/fp32/fp32/d8/separate/f4/host");
    CHECK(report.threads == 128);
    engine.seal();
    Pair pair;
    for (int i = 0; i < 3; ++i) engine.merge_states(kProblem, pair.tensors(), 3);
    engine.merge_states(kProblem, {}, 0);
    CHECK(pair.out[47] == 2.0f);
    CHECK(engine.stats().launches == 3);
    REQUIRE(engine.kernels().size() == 1);
    CHECK(engine.kernels()[0].calls == 3);
    CHECK(engine.metrics_text().find(report.key) != std::string::npos);
    MergeProblem other = kProblem;
    other.head_dim = 16;
    CHECK(code_of([&] { engine.merge_states(other, pair.tensors(), 1); }) == ErrorCode::kNotPrepared);
    CHECK(code_of([&] { engine.prepare_merge(other); }) == ErrorCode::kNotPrepared);
    CHECK(engine.stats().misses_after_seal == 2);
    other.head_dim = 7;
    CHECK(code_of([&] { engine.prepare_merge(other); }) == ErrorCode::kInvalidProblem);
}

TEST_CASE("merge engine: a bundle brings the kernel, and its key prepares it") {
    TempDir dir;
    const std::string key = "merge/fp32/fp32/d8/separate/f4/host";
    jit::BundleContents contents = empty_bundle();
    {
        Engine maker({.target = "host", .cache_dir = dir.path() / "cache"});
        pack_kernel(contents, maker, parse_key(key));
        write_bytes(dir.path() / "merge.swb", jit::encode_bundle(contents));
    }
    Engine engine({.target = "host", .disk_cache = false, .bundles = {dir.path() / "merge.swb"}});
    const std::vector<std::string> keys = {key};
    CHECK(engine.prepare_keys(keys)[0].origin == "bundle");
    CHECK(engine.prepare_merge(kProblem).origin == "memory");
    Pair pair;
    engine.merge_states(kProblem, pair.tensors(), 3);
    CHECK(pair.out[0] == 2.0f);
    CHECK(engine.stats().compiles == 0);
}

TEST_CASE("merge engine: where kernels are only compiled, a merge says so") {
    Engine engine({.target = "sm_90a", .disk_cache = false, .compile_only = true});
    Pair pair;
    CHECK(code_of([&] { engine.merge_states(kProblem, pair.tensors(), 3); }) == ErrorCode::kUnsupportedDevice);
}
