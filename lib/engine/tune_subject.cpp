// SPDX-License-Identifier: Apache-2.0
#include "engine/tune_subject.h"

#include <algorithm>

#include "base/error.h"
#include "plan/packed_tiles.h"
#include "plan/tiles.h"
#include "tune/packed_candidates.h"

namespace sapwood {
namespace {

/// A stride of 0 is a dense one.
void check_dense(std::int64_t row_stride, std::int64_t head_stride, std::int64_t heads, std::int64_t dim) {
    if ((head_stride == 0 || head_stride == dim) && (row_stride == 0 || row_stride == heads * dim)) return;
    raise(ErrorCode::kInvalidArgument, "tuning overwrites and compares the output: give it a densely packed one, not strides " +
                                           std::to_string(row_stride) + " and " + std::to_string(head_stride));
}

template <class Tensors>
void check_any(std::span<const Tensors> sets) {
    if (sets.empty()) raise(ErrorCode::kInvalidArgument, "tuning needs at least one set of tensors");
}

KernelReport report_of(KernelReport report) { return report; }
/// The main kernel's: the others do not depend on what is tuned.
KernelReport report_of(const std::vector<KernelReport>& reports) {
    const auto main = std::find_if(reports.begin(), reports.end(), [](const KernelReport& report) {
        return report.key.starts_with(family_name(Family::packed_backward));
    });
    return main == reports.end() ? KernelReport{} : *main;
}

/// A plan as a launch of any of the sets.
template <class Plan, class Tensors>
TuneSubject::Prepared prepared(Engine& engine, Plan made, std::span<const Tensors> sets, void* stream) {
    TuneSubject::Prepared result;
    result.report = report_of(engine.prepare(made));
    engine.upload(made, stream);
    const auto plan = std::make_shared<Plan>(std::move(made));
    result.launch = [&engine, plan, sets](std::size_t set, void* on) { engine.launch(*plan, sets[set], on); };
    return result;
}

class DecodeSubject : public TuneSubject {
public:
    DecodeSubject(Engine& engine, const DecodeProblem& problem, const Forest& forest, std::span<const DecodeTensors> sets)
        : engine_(engine), problem_(complete(problem)), forest_(forest), sets_(sets) {
        check_any(sets);
        for (const DecodeTensors& set : sets)
            check_dense(set.out_request_stride, set.out_head_stride, problem_.q_heads, problem_.head_dim_v);
    }
    Prepared prepare(const DecodeConfig& config, void* stream) override {
        return prepared(engine_, engine_.plan_decode(problem_, forest_, config), sets_, stream);
    }
    TuneResult result() const override {
        const std::int64_t rows = forest_.request_capacity();
        TuneResult result = {.dtype = problem_.dtype,
                             .tensors = {{sets_.front().out, rows, std::int64_t{problem_.q_heads} * problem_.head_dim_v}},
                             .lse = sets_.front().lse,
                             .lses = rows * problem_.q_heads,
                             .unwritten = {}};
        for (std::int32_t r = 0; r < forest_.request_capacity(); ++r)
            if (!forest_.request_alive(r)) result.unwritten.push_back(r);
        return result;
    }
    std::size_t sets() const override { return sets_.size(); }

private:
    Engine& engine_;
    DecodeProblem problem_;
    const Forest& forest_;
    std::span<const DecodeTensors> sets_;
};

/// A pass over a pack.
template <class Tensors>
class PassSubject : public TuneSubject {
public:
    PassSubject(Engine& engine, const PackedProblem& problem, const Pack& pack, std::span<const Tensors> sets)
        : engine_(engine), problem_(complete(problem)), pack_(pack), sets_(sets) {
        check_any(sets);
    }
    std::size_t sets() const override { return sets_.size(); }

protected:
    Engine& engine_;
    PackedProblem problem_;
    const Pack& pack_;
    std::span<const Tensors> sets_;
};

class PackedSubject : public PassSubject<PackedTensors> {
public:
    PackedSubject(Engine& engine, const PackedProblem& problem, const Pack& pack, std::span<const PackedTensors> sets)
        : PassSubject(engine, problem, pack, sets) {
        for (const PackedTensors& set : sets)
            check_dense(set.out_token_stride, set.out_head_stride, problem_.q_heads, problem_.head_dim_v);
    }
    Prepared prepare(const DecodeConfig& config, void* stream) override {
        return prepared(engine_, engine_.plan_packed(problem_, pack_, tune::as_packed(config)), sets_, stream);
    }
    TuneResult result() const override {
        return {.dtype = problem_.dtype,
                .tensors = {{sets_.front().out, pack_.rows(), std::int64_t{problem_.q_heads} * problem_.head_dim_v}},
                .lse = sets_.front().lse,
                .lses = pack_.rows() * problem_.q_heads,
                .unwritten = {}};
    }
};

class BackwardSubject : public PassSubject<PackedGradients> {
public:
    BackwardSubject(Engine& engine, const PackedProblem& problem, const Pack& pack, std::span<const PackedGradients> sets)
        : PassSubject(engine, problem, pack, sets) {
        for (const PackedGradients& set : sets) {
            check_dense(set.dq_token_stride, set.dq_head_stride, problem_.q_heads, problem_.head_dim);
            check_dense(set.dk_token_stride, set.dk_head_stride, problem_.kv_heads, problem_.head_dim);
            check_dense(set.dv_token_stride, set.dv_head_stride, problem_.kv_heads, problem_.head_dim_v);
        }
    }
    Prepared prepare(const DecodeConfig& config, void* stream) override {
        const tune::PackedPass pass(Family::packed_backward, problem_);
        return prepared(engine_, engine_.plan_packed_backward(problem_, pack_, {.config = pass.as_packed(config)}), sets_, stream);
    }
    TuneResult result() const override {
        const PackedGradients& first = sets_.front();
        const std::int64_t q_heads = problem_.q_heads, kv_heads = problem_.kv_heads;
        return {.dtype = problem_.dtype,
                .tensors = {{first.dq, pack_.rows(), q_heads * problem_.head_dim},
                            {first.dk, pack_.keys(), kv_heads * problem_.head_dim},
                            {first.dv, pack_.keys(), kv_heads * problem_.head_dim_v}},
                .unwritten = {}};
    }
};

}  // namespace

std::unique_ptr<TuneSubject> decode_subject(Engine& engine, const DecodeProblem& problem, const Forest& forest,
                                            std::span<const DecodeTensors> sets) {
    return std::make_unique<DecodeSubject>(engine, problem, forest, sets);
}

std::unique_ptr<TuneSubject> packed_subject(Engine& engine, const PackedProblem& problem, const Pack& pack,
                                            std::span<const PackedTensors> sets) {
    return std::make_unique<PackedSubject>(engine, problem, pack, sets);
}

std::unique_ptr<TuneSubject> backward_subject(Engine& engine, const PackedProblem& problem, const Pack& pack,
                                              std::span<const PackedGradients> sets) {
    return std::make_unique<BackwardSubject>(engine, problem, pack, sets);
}

}  // namespace sapwood
