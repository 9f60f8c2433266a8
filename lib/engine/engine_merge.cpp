// SPDX-License-Identifier: Apache-2.0
// Engine's merging of partial results: key, kernel, launch. There is no plan: every number of a call is an argument of the kernel.
#include <chrono>

#include "base/error.h"
#include "engine/calls.h"
#include "engine/engine_impl.h"
#include "engine/merge_arguments.h"

namespace sapwood {

KernelReport Engine::prepare_merge(const MergeProblem& problem) {
    const auto start = std::chrono::steady_clock::now();
    check_merge(problem);
    jit::Origin origin{};
    KernelReport report = report_of(*impl_->service->get(merge_key(problem, target()), &origin), origin);
    report.prepare_ms = std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start).count();
    return report;
}

void Engine::merge_states(const MergeProblem& problem, const MergeTensors& tensors, std::int64_t rows, void* stream) {
    KernelService& service = *impl_->service;
    check_merge(problem);
    impl_->check_runs();
    if (rows == 0) return;
    abi::MergeParams params{};
    bind_merge(problem, tensors, rows, params);
    const KernelKey key = merge_key(problem, service.setup.target);
    Kernel* kernel = service.find(key);
    if (kernel == nullptr) {
        if (service.setup.memory->capturing(stream))
            raise(ErrorCode::kNotPrepared, "the stream is capturing and kernel " + key.to_string() +
                                               " is not prepared; call Engine::prepare_merge before the capture");
        kernel = service.get(key);
    }
    const std::uint32_t rows_a_block =
        abi::kMergeThreads / abi::merge_lanes(key.head_dim, static_cast<unsigned>(state_dtype_bytes(problem.part_dtype)));
    enqueue(service, *kernel, (params.row_heads + rows_a_block - 1) / rows_a_block, params, stream);
}

}  // namespace sapwood
