// SPDX-License-Identifier: Apache-2.0
// What is tuned: one problem with the tensors that its candidates are run on. Knows no device, so that it runs on the host target
// as it does on a GPU.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "sapwood/engine.h"

namespace sapwood {

/// Where the first set of tensors has its results, densely packed.
struct TuneResult {
    struct Tensor {
        void* data = nullptr;
        std::int64_t rows = 0, row = 0;  // elements of a row
    };
    DType dtype = DType::bf16;
    std::vector<Tensor> tensors;  // out, or the gradients
    float* lse = nullptr;         // null: none
    std::int64_t lses = 0;
    std::vector<std::int32_t> unwritten;  // rows of the first tensor that nobody writes; their LSEs lie row by row
};

class TuneSubject {
public:
    virtual ~TuneSubject() = default;

    struct Prepared {
        KernelReport report;
        std::function<void(std::size_t set, void* stream)> launch;
    };
    /// Plans, compiles, loads and uploads. Throws what these do.
    virtual Prepared prepare(const DecodeConfig& config, void* stream) = 0;
    virtual TuneResult result() const = 0;
    virtual std::size_t sets() const = 0;
};

/// All but the subject must outlive it. Both throw kInvalidArgument for tensors that cannot be tuned on.
std::unique_ptr<TuneSubject> decode_subject(Engine& engine, const DecodeProblem& problem, const Forest& forest,
                                            std::span<const DecodeTensors> sets);
std::unique_ptr<TuneSubject> packed_subject(Engine& engine, const PackedProblem& problem, const Pack& pack,
                                            std::span<const PackedTensors> sets);
std::unique_ptr<TuneSubject> backward_subject(Engine& engine, const PackedProblem& problem, const Pack& pack,
                                              std::span<const PackedGradients> sets);

}  // namespace sapwood
