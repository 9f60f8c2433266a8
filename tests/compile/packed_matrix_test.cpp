// SPDX-License-Identifier: Apache-2.0
// The packed kernels that the planner chooses by itself, compiled for SMs that need not be here: nothing spills, everything fits,
// no warpgroup product waits for another, and none has its operands written while it runs.
#include <doctest/doctest.h>

#include "compile/sass_hazards.h"
#include "cuda/device.h"
#include "cuda/nvrtc.h"
#include "cuda/sm_table.h"
#include "sapwood/sapwood.h"
#include "support/cache_fixture.h"

using namespace sapwood;

namespace {

struct Shape {
    DType dtype;
    std::int32_t head_dim, head_dim_v;
    float softcap;
};
constexpr Shape kShapes[] = {
    {DType::bf16, 128, 0, 0},   {DType::fp16, 64, 0, 0},  {DType::fp16, 128, 0, 30}, {DType::fp16, 96, 0, 0},
    {DType::bf16, 192, 128, 0}, {DType::bf16, 192, 0, 0}, {DType::bf16, 256, 0, 0},
};

/// What is wrong with one kernel for this SM; one line, or empty.
std::string fault_of(const KernelReport& report, const std::string& target, int blocks, int spills_allowed) {
    const cuda::DeviceInfo sm = cuda::offline_device(target);
    const std::string key = report.key + ": ";
    const int registers = (report.registers + 7) / 8 * 8;  // dealt out in eights
    if (!report.error.empty()) return key + report.error;
    if (report.registers <= 0) return key + "no register count";
    if (report.spill_bytes > spills_allowed)
        return key + std::to_string(report.spill_bytes) + " bytes spilled at " + std::to_string(report.registers) + " registers";
    if ((report.shared_bytes + sm.reserved_shared_per_block) * blocks > sm.max_shared_per_sm ||
        report.shared_bytes > sm.max_shared_per_block_optin)
        return key + std::to_string(report.shared_bytes) + " bytes shared";
    if (registers * report.threads * blocks > sm.max_registers_per_sm)
        return key + std::to_string(registers) + " registers x " + std::to_string(report.threads) + " threads";
    // ptxas says so (C75xx) where it makes warpgroup products wait for each other or drops setmaxnreg.
    for (const char* word : {"wgmma", "GMMA", "setmaxnreg"})
        if (report.log.find(word) != std::string::npos) return key + report.log;
    return {};
}

/// Calls visit(engine, target) for those targets that the NVRTC here knows.
template <class Visit>
void each_target(std::initializer_list<const char*> targets, const Visit& visit) {
    if (cuda::Nvrtc().path().empty()) {
        MESSAGE("NVRTC was not found; skipped");
        return;
    }
    test::TempDir dir;
    const auto supported = cuda::Nvrtc().supported_archs();
    for (const char* target : targets) {
        if (std::find(supported.begin(), supported.end(), std::atoi(target + 3)) == supported.end()) {
            MESSAGE("this NVRTC does not know " << target << "; left out");
            continue;
        }
        Engine engine({.target = target, .cache_dir = dir.path() / "cache"});
        visit(engine, std::string(target));
    }
    test::check_operand_hazards(dir.path() / "cache");
}
Pack some_pack() { return Pack::from_segments(std::vector<Segment>{{-1, 4096}, {0, 512}}); }
Pack some_arrays() {
    const std::vector<std::int32_t> cu = {0, 4608};
    return Pack::from_cu_seqlens(cu, cu, {.causal = true, .dfs_arrays = true});
}
PackedProblem problem_of(const Shape& shape) {
    return {.q_heads = 8,
            .kv_heads = 2,
            .head_dim = shape.head_dim,
            .head_dim_v = shape.head_dim_v,
            .dtype = shape.dtype,
            .softcap = shape.softcap};
}

void check_backward(Engine& engine, const std::string& target, const PackedProblem& problem, const PackedBackwardOptions& options,
                    const Pack& pack = some_pack()) {
    PackedBackwardPlan plan = engine.plan_packed_backward(problem, pack, options);
    const std::string main = plan.kernel_keys()[pack.dfs_arrays() ? 3 : 1];
    CHECK((main.find("/arrays/") != std::string::npos) == pack.dfs_arrays());
    CHECK((main.find("/order1/") != std::string::npos) == options.deterministic);
    // mma.sync with 128 accumulators: one value of the item may wait in local memory outside the loop over its steps.
    const int allowed = plan.info().config.mainloop == Mainloop::mma ? 8 : 0;
    for (const KernelReport& report : engine.prepare(plan)) {
        const std::string fault = fault_of(report, target, plan.info().config.blocks, allowed);
        CHECK_MESSAGE(fault.empty(), fault);
    }
}

/// Of the backward kernels' variants: all by wgmma; by mma.sync those that have the most sums in registers.
bool tells(const Shape& shape, const std::string& target) {
    if (target != "sm_90a") return shape.head_dim % 128 == 0 && shape.softcap == 0;
    return (shape.head_dim == 64 || shape.head_dim == 128) && shape.head_dim_v <= 128;
}

}  // namespace

TEST_CASE("compile matrix: default packed kernels spill nothing and fit") {
    each_target({"sm_90a", "sm_80", "sm_120a"}, [](Engine& engine, const std::string& target) {
        for (const Shape& shape : kShapes) {
            PackedPlan plan = engine.plan_packed(problem_of(shape), some_pack());
            // mma.sync at head dim 128 has 168 registers beside four copy warps; a few values of the item wait in local memory.
            const int allowed = plan.info().config.mainloop == Mainloop::mma ? 32 : 0;
            const std::string fault = fault_of(engine.prepare(plan), target, plan.info().config.blocks, allowed);
            CHECK_MESSAGE(fault.empty(), fault);
            PackedPlan by_arrays = engine.plan_packed(problem_of(shape), some_arrays());
            for (const KernelReport& report : engine.prepare_keys(by_arrays.kernel_keys())) {
                const bool main = report.key == by_arrays.kernel_key();
                const std::string its = fault_of(report, target, main ? by_arrays.info().config.blocks : 1, main ? allowed : 0);
                CHECK_MESSAGE(its.empty(), its);
            }
        }
    });
}

TEST_CASE("compile matrix: packed kernels whose heads share blocks") {
    each_target({"sm_90a", "sm_80"}, [](Engine& engine, const std::string& target) {
        for (const Shape& shape : {kShapes[0], kShapes[3]}) {
            PackedPlan plan = engine.plan_packed(problem_of(shape), some_pack(), {.heads = 4});
            const int allowed = plan.info().config.mainloop == Mainloop::mma ? 32 : 0;
            const std::string fault = fault_of(engine.prepare(plan), target, plan.info().config.blocks, allowed);
            CHECK_MESSAGE(fault.empty(), fault);
        }
    });
}

TEST_CASE("compile matrix: packed backward kernels spill nothing and fit, on every SM") {
    each_target({"sm_80", "sm_86", "sm_89", "sm_90a", "sm_100a", "sm_120a"}, [](Engine& engine, const std::string& target) {
        for (const Shape& shape : kShapes) check_backward(engine, target, problem_of(shape), {});
    });
}

TEST_CASE("compile matrix: packed backward kernels by mma.sync on sm_90a, and those of two blocks an SM") {
    each_target({"sm_90a"}, [](Engine& engine, const std::string& target) {
        for (const Shape& shape : kShapes)
            check_backward(engine, target, problem_of(shape), {.config = {.mainloop = Mainloop::mma}});
        check_backward(engine, target, problem_of(kShapes[1]),
                       {.config = {.mainloop = Mainloop::mma, .block_kv = 64, .blocks = 2}});
    });
}

TEST_CASE("compile matrix: packed backward kernels of packs with arrays") {
    each_target({"sm_90a", "sm_80", "sm_120a"}, [](Engine& engine, const std::string& target) {
        for (const Shape& shape : kShapes)
            if (tells(shape, target)) check_backward(engine, target, problem_of(shape), {}, some_arrays());
    });
}

TEST_CASE("compile matrix: deterministic packed backward kernels") {
    each_target({"sm_90a", "sm_80", "sm_120a"}, [](Engine& engine, const std::string& target) {
        for (const Shape& shape : kShapes)
            if (tells(shape, target)) check_backward(engine, target, problem_of(shape), {.deterministic = true});
    });
}
