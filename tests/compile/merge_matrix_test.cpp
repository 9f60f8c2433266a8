// SPDX-License-Identifier: Apache-2.0
// Merge kernels of every kind, compiled for SMs that need not be here: nothing spills.
#include <doctest/doctest.h>

#include "cuda/nvrtc.h"
#include "sapwood/sapwood.h"
#include "support/cache_fixture.h"

using namespace sapwood;

TEST_CASE("compile matrix: merge kernels spill nothing, and those for few parts leave room for 40 warps an SM") {
    if (cuda::Nvrtc().path().empty()) {
        MESSAGE("NVRTC was not found; skipped");
        return;
    }
    const char* const kinds[] = {"bf16/bf16/d128/stacked/f4",  "bf16/bf16/d128/separate/f4", "fp16/fp16/d64/stacked/f4",
                                 "fp16/fp32/d96/separate/f4",  "fp32/fp16/d128/stacked/f4",  "bf16/bf16/d40/stacked/f4",
                                 "bf16/bf16/d256/separate/f4", "fp16/fp16/d128/stacked/f16", "bf16/fp32/d8/stacked/f16",
                                 "fp32/bf16/d128/stacked/f16", "fp32/fp32/d384/stacked/f16", "bf16/bf16/d512/separate/f4",
                                 "bf16/fp16/d512/stacked/f16", "fp32/fp32/d512/separate/f16"};
    test::TempDir dir;
    for (const char* target : {"sm_80", "sm_90a", "sm_120a"}) {
        const auto supported = cuda::Nvrtc().supported_archs();
        if (std::find(supported.begin(), supported.end(), std::atoi(target + 3)) == supported.end()) {
            MESSAGE("this NVRTC does not know " << target << "; left out");
            continue;
        }
        Engine engine({.target = target, .cache_dir = dir.path() / "cache", .compile_only = true});
        std::vector<std::string> keys;
        for (const char* kind : kinds) keys.push_back("merge/" + std::string(kind) + "/" + target);
        for (const KernelReport& report : engine.prepare_keys(keys)) {
            CAPTURE(report.key);
            CHECK(report.error == "");
            CHECK(report.registers > 0);
            CHECK(report.spill_bytes == 0);
            CHECK(report.registers <= 168);
            if (report.key.find("/d512/") == std::string::npos && report.key.find("/f4/") != std::string::npos)
                CHECK(report.registers <= 48);
        }
    }
}
