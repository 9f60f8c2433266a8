// SPDX-License-Identifier: Apache-2.0
#include "engine/tune_subject.h"

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

/// A plan as a launch of any of the sets.
template <class Plan, class Tensors>
TuneSubject::Prepared prepared(Engine& engine, Plan made, std::span<const Tensors> sets, void* stream) {
    TuneSubject::Prepared result;
    result.report = engine.prepare(made);
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
        TuneResult result = {.dtype = problem_.dtype,
                             .rows = forest_.request_capacity(),
                             .heads = problem_.q_heads,
                             .dim = problem_.head_dim_v,
                             .out = sets_.front().out,
                             .lse = sets_.front().lse,
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

class PackedSubject : public TuneSubject {
public:
    PackedSubject(Engine& engine, const PackedProblem& problem, const Pack& pack, std::span<const PackedTensors> sets)
        : engine_(engine), problem_(complete(problem)), pack_(pack), sets_(sets) {
        check_any(sets);
        for (const PackedTensors& set : sets)
            check_dense(set.out_token_stride, set.out_head_stride, problem_.q_heads, problem_.head_dim_v);
    }
    Prepared prepare(const DecodeConfig& config, void* stream) override {
        return prepared(engine_, engine_.plan_packed(problem_, pack_, tune::as_packed(config)), sets_, stream);
    }
    TuneResult result() const override {
        return {.dtype = problem_.dtype,
                .rows = pack_.rows(),
                .heads = problem_.q_heads,
                .dim = problem_.head_dim_v,
                .out = sets_.front().out,
                .lse = sets_.front().lse,
                .unwritten = {}};
    }
    std::size_t sets() const override { return sets_.size(); }

private:
    Engine& engine_;
    PackedProblem problem_;
    const Pack& pack_;
    std::span<const PackedTensors> sets_;
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

}  // namespace sapwood
