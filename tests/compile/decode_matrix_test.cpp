// SPDX-License-Identifier: Apache-2.0
// The decode kernels that the planner chooses by itself, compiled for SMs that need not be here: nothing spills, everything fits.
#include <doctest/doctest.h>

#include <mutex>
#include <string_view>

#include "compile/sass_hazards.h"
#include "cuda/device.h"
#include "cuda/nvrtc.h"
#include "cuda/sm_table.h"
#include "sapwood/sapwood.h"
#include "support/cache_fixture.h"
#include "support/parallel.h"

using namespace sapwood;

namespace {

struct Shape {
    DType dtype;
    std::int32_t head_dim, head_dim_v, group, page_size;
    float softcap;
    bool shared;  // one prefix under all requests (wide blocks), or a run of its own for each (narrow ones)
    Mainloop mainloop = Mainloop::mma;
    KvDType kv_dtype = KvDType::as_q;
    std::int32_t block_kv = 0;
    std::int32_t static_rows = 0;  // of a static tree; 0: a forest
};

// Those that every SM must have, then more of them for one SM: each value of each field, in combinations that differ.
constexpr Shape kEverywhere[] = {
    {DType::bf16, 64, 0, 8, 16, 0, false},
    {DType::fp16, 96, 0, 4, 1, 0, true},
    {DType::bf16, 128, 0, 4, 1, 0, true},
    {DType::fp16, 128, 0, 1, 0, 50, false},
    {DType::bf16, 192, 128, 16, 64, 0, true},
    {DType::fp16, 256, 0, 2, 16, 30, true},
    // Static trees of many rows: two wide blocks an SM, where registers can be handed over.
    {DType::fp16, 64, 0, 1, 0, 0, false, Mainloop::choose, KvDType::as_q, 0, 100'000},
};
constexpr Shape kOnOne[] = {
    {DType::fp16, 64, 0, 1, 0, 20, true},
    {DType::fp16, 96, 0, 7, 32, 0, false},
    {DType::bf16, 128, 0, 64, 128, 0, false},
    {DType::fp16, 128, 0, 16, 1, 30, true},
    {DType::bf16, 128, 0, 3, 0, 0, true},
    {DType::fp16, 192, 0, 1, 1, 0, false},
    {DType::bf16, 192, 128, 4, 16, 50, true},
    {DType::bf16, 256, 0, 5, 0, 0, false},
    {DType::bf16, 64, 0, 5, 16, 30, false, Mainloop::choose, KvDType::as_q, 0, 30'000},
    {DType::bf16, 128, 0, 1, 1, 0, false, Mainloop::choose, KvDType::as_q, 0, 500},
};
// fp8 KV: SMs with and without the conversion, by instruction or by shifts.
constexpr KvDType kFp8 = KvDType::e4m3;
constexpr const char* kFp8Targets[] = {"sm_80", "sm_89", "sm_90a", "sm_120a"};
constexpr Shape kFp8Shapes[] = {
    {DType::bf16, 128, 0, 4, 16, 0, true, Mainloop::mma, kFp8},
    {DType::fp16, 64, 0, 8, 1, 30, false, Mainloop::mma, kFp8},
    {DType::fp16, 128, 0, 8, 0, 0, false, Mainloop::mma, kFp8},
    {DType::bf16, 192, 128, 16, 64, 0, true, Mainloop::mma, kFp8},
};
// For sm_90a alone.
constexpr KvDType kAsQ = KvDType::as_q;
constexpr Shape kWarpgroups[] = {
    {DType::fp16, 128, 0, 4, 1, 0, true, Mainloop::wgmma},
    {DType::bf16, 128, 0, 16, 64, 50, true, Mainloop::wgmma},
    {DType::bf16, 64, 0, 8, 0, 0, false, Mainloop::wgmma},
    {DType::fp16, 64, 128, 1, 16, 0, true, Mainloop::wgmma},
    {DType::fp16, 128, 64, 7, 32, 30, true, Mainloop::wgmma},
    {DType::bf16, 128, 0, 4, 16, 0, true, Mainloop::wgmma, kAsQ, 128},
    {DType::fp16, 64, 0, 8, 0, 50, true, Mainloop::wgmma, kAsQ, 128},
    {DType::bf16, 128, 0, 4, 16, 0, true, Mainloop::wgmma, kFp8},
    {DType::fp16, 64, 128, 8, 1, 0, false, Mainloop::wgmma, kFp8},
};
constexpr Shape kFp8OnOne[] = {
    {DType::bf16, 96, 0, 5, 1, 0, true, Mainloop::mma, kFp8},
    {DType::fp16, 192, 0, 3, 16, 0, false, Mainloop::mma, kFp8},
    {DType::bf16, 256, 0, 4, 0, 50, true, Mainloop::mma, kFp8},
};

Forest forest_for(const Shape& shape) {
    std::vector<Node> nodes = {{.parent = -1, .tokens = shape.shared ? 4096 : 0, .kv_begin = 0}};
    for (int i = 0; i < 64; ++i) nodes.push_back({.parent = 0, .tokens = 512, .kv_begin = 4096 + 512 * i});
    return Forest::from_nodes(nodes);
}

DecodePlan static_plan(Engine& engine, const DecodeProblem& problem, std::int32_t rows, const DecodeConfig& config) {
    std::vector<std::int32_t> parents;  // binary, level by level
    for (std::int32_t i = 0; i < rows; ++i) parents.push_back((i + 1) / 2 - 1);
    const StaticTree trees[] = {StaticTree::from_parents(parents)};
    const StaticTreeSequence sequences[] = {{}};
    return engine.plan_static_tree(problem, trees, sequences, config);
}

/// What is wrong with the kernel that this SM gets for this shape; one line, or empty.
std::string fault_of(Engine& engine, const Shape& shape) {
    const DecodeProblem problem = {.q_heads = shape.group * 2,
                                   .kv_heads = 2,
                                   .head_dim = shape.head_dim,
                                   .head_dim_v = shape.head_dim_v,
                                   .dtype = shape.dtype,
                                   .kv_dtype = shape.kv_dtype,
                                   .page_size = shape.page_size,
                                   .softcap = shape.softcap};
    const DecodeConfig config = {.mainloop = shape.mainloop, .block_kv = shape.block_kv};
    DecodePlan plan = shape.static_rows > 0 ? static_plan(engine, problem, shape.static_rows, config)
                                            : engine.plan_decode(problem, forest_for(shape), config);
    const std::string key = plan.kernel_key() + ": ";
    const KernelReport report = engine.prepare(plan);
    const int blocks = plan.info().config.blocks, registers = (report.registers + 7) / 8 * 8;  // dealt out in eights
    const cuda::DeviceInfo sm = cuda::offline_device(engine.target());
    if (report.registers <= 0) return key + "no register count";
    // What ptxas parks in local memory once a work item (seen in the machine code: none of it in the key loop): a loop counter on
    // sm_100a; up to sixteen values with the 128 accumulators a thread of head dim 256; up to four in copy warps that widen,
    // between one item's last tile and the next one's first. Anything more is a fault.
    const bool widens = shape.kv_dtype != KvDType::as_q && shape.mainloop == Mainloop::wgmma;
    if (report.spill_bytes > (shape.head_dim == 256 ? 64 : widens ? 16 : 8))
        return key + std::to_string(report.spill_bytes) + " bytes spilled at " + std::to_string(report.registers) + " registers";
    if (report.shared_bytes > sm.max_shared_per_block_optin) return key + std::to_string(report.shared_bytes) + " bytes shared";
    if ((report.shared_bytes + sm.reserved_shared_per_block) * blocks > sm.max_shared_per_sm)
        return key + std::to_string(blocks) + " blocks of " + std::to_string(report.shared_bytes) +
               " bytes shared do not fit an SM";
    if (registers * report.threads * blocks > sm.max_registers_per_sm)
        return key + std::to_string(registers) + " registers x " + std::to_string(report.threads) + " threads x " +
               std::to_string(blocks) + " blocks do not fit an SM";
    // ptxas says so (C75xx) where it makes warpgroup products wait for each other or drops setmaxnreg.
    if (report.log.find("wgmma") != std::string::npos || report.log.find("setmaxnreg") != std::string::npos)
        return key + report.log;
    if (engine.binary(plan).size() < 1024) return key + "no cubin";
    return {};
}

}  // namespace

TEST_CASE("compile matrix: default decode kernels on every SM spill nothing and fit") {
    if (cuda::Nvrtc().path().empty()) {
        MESSAGE("NVRTC was not found; skipped");
        return;
    }
    test::TempDir dir;
    std::vector<std::unique_ptr<Engine>> engines;
    std::vector<std::pair<Engine*, const Shape*>> jobs;
    const auto supported = cuda::Nvrtc().supported_archs();
    for (const char* target : {"sm_90a", "sm_80", "sm_86", "sm_89", "sm_100a", "sm_120a"}) {
        if (std::find(supported.begin(), supported.end(), std::atoi(target + 3)) == supported.end()) {
            MESSAGE("this NVRTC does not know " << target << "; left out");
            continue;
        }
        engines.push_back(std::make_unique<Engine>(EngineOptions{.target = target, .cache_dir = dir.path() / "cache"}));
        for (const Shape& shape : kEverywhere) jobs.emplace_back(engines.back().get(), &shape);
        if (std::find(std::begin(kFp8Targets), std::end(kFp8Targets), std::string_view(target)) != std::end(kFp8Targets))
            for (const Shape& shape : kFp8Shapes) jobs.emplace_back(engines.back().get(), &shape);
        if (engines.size() > 1) continue;
        for (const Shape& shape : kFp8OnOne) jobs.emplace_back(engines.back().get(), &shape);
        for (const Shape& shape : kOnOne) jobs.emplace_back(engines.back().get(), &shape);
        for (const Shape& shape : kWarpgroups) jobs.emplace_back(engines.back().get(), &shape);
    }
    std::mutex mutex;
    std::string faults;
    support::parallel_for(static_cast<std::int64_t>(jobs.size()), 1, [&](std::int64_t begin, std::int64_t) {
        const auto& [engine, shape] = jobs[static_cast<std::size_t>(begin)];
        std::string fault;
        try {
            fault = fault_of(*engine, *shape);
        } catch (const Error& error) {
            fault = engine->target() + " d" + std::to_string(shape->head_dim) + ": " + error.what();
        }
        const std::lock_guard lock(mutex);
        if (!fault.empty()) faults += "\n  " + fault;
    });
    CHECK_MESSAGE(faults.empty(), "of " << jobs.size() << " kernels these do not hold up:" << faults);
    test::check_operand_hazards(dir.path() / "cache");
}
