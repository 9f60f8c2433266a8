// SPDX-License-Identifier: Apache-2.0
// A forest of three nodes with its tensors in host memory: the smallest whole call, for tests of what is around the kernel.
#pragma once

#include <doctest/doctest.h>

#include <filesystem>
#include <initializer_list>
#include <string>

#include "cuda/nvrtc.h"
#include "sapwood/sapwood.h"
#include "support/compare.h"
#include "support/inputs.h"
#include "support/workload.h"

namespace sapwood::test {

struct SmallProblem {
    explicit SmallProblem(std::int32_t page_size = 16, std::int32_t head_dim = 64)
        : which(support::build_case(spec(),
                                    {.dtype = DType::fp16,
                                     .head_dim = head_dim,
                                     .q_heads = 4,
                                     .kv_heads = 2,
                                     .page_size = page_size == 0 ? 1 : page_size,
                                     .layout = page_size == 0 ? support::Layout::contiguous : support::Layout::random},
                                    {.runs_without_pages = true})),
          inputs(support::make_inputs(which)) {}

    DecodePlan plan(Engine& engine, const DecodeConfig& config = {}) const {
        return engine.plan_decode(which.problem(), which.forest, config);
    }
    /// What is wrong with the present out and lse; empty: nothing.
    std::string fault() const {
        const auto comparison =
            support::compare(which.problem(), inputs.tensors, oracle::decode(which.forest, which.problem(), inputs.tensors, 1));
        return comparison.passes(which.variant.dtype) ? "" : comparison.to_string();
    }
    /// A whole call with poisoned outputs.
    std::string launch_fault(Engine& engine, DecodePlan& plan) {
        support::poison(inputs);
        engine.launch(plan, inputs.tensors);
        return fault();
    }

    support::DecodeCase which;
    support::Inputs inputs;

private:
    static support::CaseSpec spec() {
        support::CaseSpec made;
        made.name = "small";
        made.nodes = {{-1, 40, 0}, {0, 21, 2}, {0, 7, 1}};
        return made;
    }
};

inline EngineOptions on(const std::string& target, const std::filesystem::path& cache) {
    return {.target = target, .cache_dir = cache};
}

/// Compiles once for all tests that do not look at where a kernel comes from.
inline EngineOptions on_host() { return on("host", SAPWOOD_BINARY_DIR "/test-cache"); }

inline bool have_nvrtc() {
    if (!cuda::Nvrtc().path().empty()) return true;
    MESSAGE("NVRTC was not found; skipped");
    return false;
}

/// The call must throw this code with all these words in its text.
template <class Call>
void check_refused(ErrorCode code, std::initializer_list<const char*> words, const Call& call) {
    try {
        call();
        FAIL_CHECK("was not refused");
    } catch (const Error& error) {
        const std::string text = error.what();
        CAPTURE(text);
        CHECK(std::string(error_code_name(error.code())) == error_code_name(code));
        for (const char* word : words) CHECK_MESSAGE(text.find(word) != std::string::npos, "without \"" << word << "\"");
    }
}

}  // namespace sapwood::test
