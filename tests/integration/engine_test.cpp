// SPDX-License-Identifier: Apache-2.0
// The engine around the kernel: what it refuses and how it says so, and that it works on afterwards.
#include <doctest/doctest.h>

#include <cmath>
#include <memory>

#include "cuda/device.h"
#include "integration/small_problem.h"
#include "support/cache_fixture.h"

using namespace sapwood;
using namespace sapwood::test;
namespace fs = std::filesystem;

namespace {

template <class T>
const T* shifted(const T* pointer, std::size_t bytes) {
    return reinterpret_cast<const T*>(reinterpret_cast<const char*>(pointer) + bytes);
}

}  // namespace

TEST_CASE("engine: bad tensors are refused by name before anything runs, prepared or not") {
    Engine engine(on_host());
    SmallProblem paged, contiguous(0);
    const auto refused = [&](SmallProblem& problem, std::initializer_list<const char*> words,
                             const std::function<void(DecodeTensors&)>& spoil) {
        for (const bool prepared : {false, true}) {
            DecodePlan plan = problem.plan(engine);
            if (prepared) engine.prepare(plan), engine.upload(plan);
            support::poison(problem.inputs);
            const std::vector<std::uint16_t> before(problem.inputs.out.data(),
                                                    problem.inputs.out.data() + problem.inputs.out.size());
            DecodeTensors tensors = problem.inputs.tensors;
            spoil(tensors);
            const auto launches = engine.stats().launches;
            check_refused(ErrorCode::kInvalidArgument, words, [&] { engine.launch(plan, tensors); });
            CHECK(engine.stats().launches == launches);
            CHECK(std::equal(before.begin(), before.end(), problem.inputs.out.data()));
            CHECK(problem.launch_fault(engine, plan) == "");  // the same plan, put right
        }
    };
    refused(paged, {"q ", "null"}, [](DecodeTensors& t) { t.q = nullptr; });
    refused(paged, {"k ", "null"}, [](DecodeTensors& t) { t.k = nullptr; });
    refused(paged, {"v ", "16 bytes"}, [](DecodeTensors& t) { t.v = shifted(static_cast<const char*>(t.v), 8); });
    refused(paged, {"out ", "null"}, [](DecodeTensors& t) { t.out = nullptr; });
    refused(paged, {"lse ", "4 bytes"}, [](DecodeTensors& t) { t.lse = const_cast<float*>(shifted(t.lse, 2)); });
    refused(paged, {"page_table ", "null"}, [](DecodeTensors& t) { t.page_table = nullptr; });
    refused(contiguous, {"page_table ", "page_size 0"}, [&](DecodeTensors& t) { t.page_table = paged.inputs.tensors.page_table; });
    refused(paged, {"q_head_stride ", "68", "multiple of 8"}, [](DecodeTensors& t) { t.q_head_stride = 68; });
    refused(paged, {"k_token_stride ", "-128"}, [](DecodeTensors& t) { t.k_token_stride = -128; });
    refused(paged, {"v_token_stride ", "at most"}, [](DecodeTensors& t) { t.v_token_stride = std::int64_t{1} << 40; });
    refused(paged, {"out_request_stride "}, [](DecodeTensors& t) { t.out_request_stride = INT64_MAX / 2; });
}

TEST_CASE("engine: problems and tiles that do not fit are refused with what would") {
    Engine engine(on_host());
    SmallProblem small;
    const auto refused = [&](std::initializer_list<const char*> words,
                             const std::function<void(DecodeProblem&, DecodeConfig&)>& spoil) {
        DecodeProblem problem = small.which.problem();
        DecodeConfig config;
        spoil(problem, config);
        check_refused(ErrorCode::kInvalidProblem, words, [&] { engine.plan_decode(problem, small.which.forest, config); });
    };
    refused({"80", "64, 96, 128, 192, 256"}, [](DecodeProblem& p, DecodeConfig&) { p.head_dim = 80; });
    refused({"320"}, [](DecodeProblem& p, DecodeConfig&) { p.head_dim_v = 320; });
    refused({"q_heads 5", "kv_heads 2"}, [](DecodeProblem& p, DecodeConfig&) { p.q_heads = 5; });
    refused({"65", "64"}, [](DecodeProblem& p, DecodeConfig&) { p.q_heads = 130; });
    refused({"page size 8", "1, 16, 32, 64, 128"}, [](DecodeProblem& p, DecodeConfig&) { p.page_size = 8; });
    refused({"softcap"}, [](DecodeProblem& p, DecodeConfig&) { p.softcap = -1; });
    refused({"scale"}, [](DecodeProblem& p, DecodeConfig&) { p.scale = std::nanf(""); });
    refused({"dtype"}, [](DecodeProblem& p, DecodeConfig&) { p.dtype = static_cast<DType>(7); });
    refused({"warps 3", "4 or 8"}, [](DecodeProblem&, DecodeConfig& c) { c.warps = 3; });
    refused({"bytes of shared memory"}, [](DecodeProblem&, DecodeConfig& c) { c.stages = 16, c.block_kv = 128; });
    DecodePlan plan = small.plan(engine);
    CHECK(small.launch_fault(engine, plan) == "");
}

TEST_CASE("engine: a plan for another device, and an engine without one, are refused; the plan stays good where it belongs") {
    TempDir dir;
    Engine host(on_host()), offline(on("sm_90a", dir.path()));
    SmallProblem small;
    DecodePlan here = small.plan(host), there = small.plan(offline);
    if (!offline.has_device()) {
        check_refused(ErrorCode::kUnsupportedDevice, {"sm_90a", "not launched"},
                      [&] { offline.launch(there, small.inputs.tensors); });
        check_refused(ErrorCode::kUnsupportedDevice, {"sm_90a", "not launched"}, [&] { offline.upload(there); });
    }
    check_refused(ErrorCode::kUnsupportedDevice, {"sm_90a", "host", "Plan with this engine"},
                  [&] { host.launch(there, small.inputs.tensors); });
    check_refused(ErrorCode::kUnsupportedDevice, {"sm_90a", "host"}, [&] { host.prepare(there); });
    check_refused(ErrorCode::kUnsupportedDevice, {"sm_90a", "host"}, [&] { offline.prepare(here); });
    CHECK(small.launch_fault(host, here) == "");
    check_refused(ErrorCode::kUnsupportedDevice, {"sm_90a", "host"}, [&] { offline.prepare(here); });  // prepared elsewhere
    CHECK(small.launch_fault(host, here) == "");
    if (have_nvrtc()) CHECK(offline.prepare(there).registers > 0);

    check_refused(ErrorCode::kUnsupportedDevice, {"sm_42", "sm_80"}, [] { Engine({.target = "sm_42"}); });
    check_refused(ErrorCode::kInvalidArgument, {"gpu", "host"}, [] { Engine({.target = "gpu"}); });
    check_refused(ErrorCode::kInvalidArgument, {"cuda:x"}, [] { Engine({.target = "cuda:x"}); });
    check_refused(ErrorCode::kUnsupportedDevice, {"99"}, [] {
        if (cuda::device_count() == 0) throw Error(ErrorCode::kUnsupportedDevice, "99: no GPU to ask");
        Engine({.target = "cuda:99"});
    });
    if (cuda::device_count() == 0)
        check_refused(ErrorCode::kUnsupportedDevice, {"cuda", "GPU"}, [] { Engine({.target = "cuda"}); });
}

TEST_CASE("engine: a plan outlives its engine and is prepared anew by the next one") {
    SmallProblem small;
    auto engine = std::make_unique<Engine>(on_host());
    DecodePlan plan = small.plan(*engine);
    CHECK(small.launch_fault(*engine, plan) == "");
    for (int i = 0; i < 4; ++i) {  // whose memory may well be where the last one's was
        engine.reset();
        engine = std::make_unique<Engine>(on_host());
        CHECK(small.launch_fault(*engine, plan) == "");
        CHECK(engine->stats().disk_hits == 1);
    }
}

TEST_CASE("engine: sealed, it serves what is prepared and refuses the rest") {
    TempDir dir;
    Engine engine(on("host", dir.path() / "cache"));
    SmallProblem small, other(0);
    DecodePlan first = small.plan(engine), second = small.plan(engine), unknown = other.plan(engine);
    engine.prepare(first);
    engine.seal();
    CHECK(small.launch_fault(engine, first) == "");
    CHECK(small.launch_fault(engine, second) == "");  // another plan, the same kernel
    for (int i = 0; i < 2; ++i) {
        check_refused(ErrorCode::kNotPrepared, {"sealed", unknown.kernel_key().c_str(), "before seal()"},
                      [&] { engine.launch(unknown, other.inputs.tensors); });
    }
    check_refused(ErrorCode::kNotPrepared, {"sealed"}, [&] { engine.prepare(unknown); });
    CHECK(engine.stats().misses_after_seal == 3);
    CHECK(engine.stats().compiles == 1);
    CHECK(small.launch_fault(engine, first) == "");
}

TEST_CASE("engine: nothing to attend is no error") {
    Engine engine(on_host());
    SmallProblem small;
    DecodePlan plan = engine.plan_decode(small.which.problem(), Forest());
    engine.launch(plan, small.inputs.tensors);
    CHECK(plan.info().requests == 0);
    CHECK(std::isnan(small.inputs.lse[0]));  // nothing written
    plan.update(small.which.forest);
    CHECK(small.launch_fault(engine, plan) == "");
}
