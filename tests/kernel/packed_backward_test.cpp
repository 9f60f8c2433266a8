// SPDX-License-Identifier: Apache-2.0
// Gradients over packs against the fp64 oracle, on the host target and on a GPU if there is one: the same cases.
#include <doctest/doctest.h>

#include <algorithm>
#include <functional>
#include <memory>

#include "engine/backward_buffers.h"
#include "kernel/packed_gradients.h"
#include "support/compare.h"
#include "support/gpu.h"

using namespace sapwood;
using namespace sapwood::test;

namespace {

/// Every case by the main loop that is chosen and, where that is another one, by mma.sync.
void all_cases(const Target& target) {
    int ran = 0;
    // Items of one head, in place of a group's.
    for (const Mainloop mainloop : {Mainloop::choose, Mainloop::mma})
        check_gradients(
            target, packed_cases()[0],
            {{.config = {.mainloop = mainloop, .heads = 1}}, {.deterministic = true, .config = {.mainloop = mainloop, .heads = 1}}},
            true);
    for (const PackedCase& which : packed_cases()) {
        if (!which.lse) continue;
        check_gradients(target, which, {{.config = {.mainloop = which.config.mainloop}}}, ++ran % 2 == 0);
#if defined(__SANITIZE_ADDRESS__)
        if (ran > 4) continue;  // what follows differs in sizes, and instrumented kernels take the compiler long
#endif
        const bool wgmma = wgmma_has_backward(which.problem);
        if (which.config.mainloop != Mainloop::choose || !wgmma) continue;
        check_gradients(target, which, {{.deterministic = true}, {.config = {.mainloop = Mainloop::mma}}}, ran % 2 == 1);
    }
    CHECK(ran >= 16);
}
/// Prompts that many blocks add to, in several parts, and heads that share K and V.
PackedCase shared_prompt(std::int32_t prompt, std::int32_t responses, std::int32_t tokens, const PackedProblem& problem) {
    PackedCase which = {"shared prompt", problem, {{-1, prompt}}};
    for (std::int32_t i = 0; i < responses; ++i) which.segments.push_back({0, tokens + i});
    return which;
}
/// Each engine is a schedule of its own: number of blocks at work at a time, order of a block's threads.
std::vector<std::unique_ptr<Engine>> schedules() {
    std::vector<std::unique_ptr<Engine>> engines;
    for (unsigned i = 0; i < 5; ++i) {
        EngineOptions options = host_options(i);
        options.host_threads = 1 + 3 * i;
        engines.push_back(std::make_unique<Engine>(options));
    }
    return engines;
}
/// On the host: what was added up in fp32, where no rounding hides the order.
std::vector<float> sums_of(const PackedBackwardPlan::Impl& plan) {
    const abi::BackwardParams& main = static_cast<const BackwardBuffers*>(plan.device.get())->base().main;
    std::vector<float> sums(main.dq_sums,
                            main.dq_sums + plan.row_tiles() * abi::kRowTile * plan.problem.q_heads * plan.problem.head_dim);
    sums.insert(sums.end(), main.kv_sums, main.kv_sums + plan.kv_sums());
    return sums;
}
/// Runs with the target of every round; all results must be those of the first, bit by bit.
void same_bits(const PackedCase& which, const PackedConfig& config, int rounds, const std::function<Target(int)>& target_of) {
    Gradients gradients(which, true);
    gradients.scene.run(target_of(0));
    std::vector<std::uint16_t> dq, dk, dv;
    std::vector<float> sums;
    for (int round = 0; round < rounds; ++round) {
        const Target target = target_of(round);
        PackedBackwardPlan plan =
            target.engine->plan_packed_backward(which.problem, gradients.scene.pack, {.deterministic = true, .config = config});
        gradients.launch(target, plan);
        if (round % 2 == 1) gradients.launch(target, plan);  // counters are as they were before
        const std::vector<float> now = target.device == nullptr ? sums_of(plan.impl()) : std::vector<float>();
        if (round == 0) dq = gradients.dq, dk = gradients.dk, dv = gradients.dv, sums = now;
        CAPTURE(round);
        CAPTURE(config.to_string());
        CHECK(gradients.dq == dq);
        CHECK(gradients.dk == dk);
        CHECK(gradients.dv == dv);
        CHECK((now == sums));
    }
}

/// What `sapwood bench --check` judges packs of any size by: some rows and keys alone, of the out and lse that there are.
void some_rows_and_keys(const PackedCase& which) {
    Gradients gradients(which, false);
    gradients.scene.run(host_target());
    const oracle::PackedGradients all = gradients.wanted();
    const std::vector<std::int64_t> rows = {0, 63, gradients.scene.pack.rows() - 1},
                                    keys = {1, 149, gradients.scene.pack.keys() - 2};
    const auto some = oracle::packed_backward_of(which.problem, gradients.scene.tensors, gradients.scene.pack.rows(),
                                                 gradients.scene.pack.keys(), which.sees(), gradients.dout.data(), rows, keys);
    const auto error = [](const std::vector<double>& got, const std::vector<double>& whole, const std::vector<std::int64_t>& of) {
        std::vector<double> wanted;
        const std::ptrdiff_t width = std::ssize(got) / std::ssize(of);
        for (const std::int64_t i : of) wanted.insert(wanted.end(), whole.begin() + i * width, whole.begin() + (i + 1) * width);
        return support::relative_error(got, wanted);
    };
    CHECK(error(some.dq, all.dq, rows) <= support::tolerance(which.problem.dtype));
    CHECK(error(some.dk, all.dk, keys) <= support::tolerance(which.problem.dtype));
    CHECK(error(some.dv, all.dv, keys) <= support::tolerance(which.problem.dtype));
    CHECK(error(some.dq, all.dq, {1, 64, 100}) > support::tolerance(which.problem.dtype));
}

}  // namespace

TEST_CASE("packed backward on host: gradients against the oracle") { all_cases(host_target()); }
TEST_CASE("packed backward on gpu: gradients against the oracle") {
    if (support::gpu_available()) all_cases(gpu_target());
}

TEST_CASE("packed backward on host: deterministic gradients, however blocks and threads are scheduled") {
    const auto engines = schedules();
    const auto check = [&](const PackedCase& which, const PackedConfig& config, std::int64_t parts) {
        PackedBackwardPlan plan =
            engines[0]->plan_packed_backward(which.problem, which.pack(), {.deterministic = true, .config = config});
        const auto& blocks = plan.impl().list.blocks;
        CHECK(std::count_if(blocks.begin(), blocks.end(), [](const abi::KeyBlock& block) { return block.slot == 0; }) >= parts);
        same_bits(which, config, 5, [&](int round) { return Target{engines[static_cast<std::size_t>(round)].get(), nullptr}; });
    };
    // Three parts: two have the same sum in either order.
    check(shared_prompt(128, 3, 90, {.q_heads = 32, .kv_heads = 1, .head_dim = 64}), {}, 3);
    check(shared_prompt(128, 3, 90, {.q_heads = 32, .kv_heads = 1, .head_dim = 64, .dtype = DType::fp16}),
          {.mainloop = Mainloop::mma, .stages = 1}, 3);
    // Several items a block, each of some heads: all add to dK and dV.
    check(shared_prompt(128, 3, 90, {.q_heads = 32, .kv_heads = 1, .head_dim = 64}), {.heads = 8}, 1);
    check(shared_prompt(100, 2, 90, {.q_heads = 12, .kv_heads = 2, .head_dim = 64, .dtype = DType::fp16}),
          {.mainloop = Mainloop::mma, .stages = 1, .heads = 2}, 1);
    // There and back, a group in several items: the last block is not the first one's.
    const PackedCase sequence = {"sequence", {.q_heads = 4, .kv_heads = 1, .head_dim = 128}, {{-1, 640}}};
    const PackedBackwardPlan plan = engines[0]->plan_packed_backward(sequence.problem, sequence.pack(), {.deterministic = true});
    CHECK(plan.impl().list.blocks.back().key_begin > 0);
    CHECK(plan.impl().bundles > 1);
    check(sequence, {}, 0);
    // Steps of half a row tile.
    check(shared_prompt(60, 1, 140, {.q_heads = 2, .kv_heads = 2, .head_dim = 256, .dtype = DType::fp16}), {.block_kv = 32}, 0);
}
TEST_CASE("packed backward on host: whoever comes first to a tile of dQ writes it, however blocks and threads are scheduled") {
    const PackedCase which = shared_prompt(140, 3, 100, {.q_heads = 4, .kv_heads = 1, .head_dim = 64});
    for (const auto& engine : schedules()) check_gradients({engine.get(), nullptr}, which, {{}}, true);
}
TEST_CASE("packed backward on gpu: deterministic gradients, each time the same bits") {
    if (!support::gpu_available()) return;
    const auto check = [](std::int32_t dim, const PackedConfig& config) {
        same_bits(shared_prompt(2048, 8, 600, {.q_heads = 8, .kv_heads = 2, .head_dim = dim}), config, 20,
                  [](int) { return gpu_target(); });
    };
    for (const std::int32_t dim : {64, 128}) {
        check(dim, {});
        check(dim, {.mainloop = Mainloop::mma});
        check(dim, {.heads = 2});
        check(dim, {.mainloop = Mainloop::mma, .heads = 1});
    }
    check(128, {.mainloop = Mainloop::mma, .block_kv = 64, .stages = 1});
    check(256, {.block_kv = 32});
}
TEST_CASE("packed backward on host: the oracle of some rows and keys says what that of all says") {
    for (const std::size_t i : {0, 1}) {
        PackedCase which = packed_cases()[i];
        which.padded = false;
        some_rows_and_keys(which);
    }
}
