// SPDX-License-Identifier: Apache-2.0
#include "tune_case.h"

#include <cmath>

#include "engine/cuda_measurer.h"
#include "packed_case.h"
#include "plan/order.h"
#include "plan/packed_tiles.h"
#include "plan/tiles.h"
#include "support/half.h"
#include "tune/packed_candidates.h"

namespace sapwood::tool {
namespace {

constexpr double kMostCopies = 400;  // of a K and V so small that they would have to be thousands
constexpr double kExactBytes = 1e9;  // larger K and V are a random block, repeated: host memory and time

/// At least three sets below twice the wanted size; above it one streams the L2 out by itself.
int copies_of(double bytes, const DevicePtr& device, const TunePolicy& policy) {
    const double wanted = policy.cold_factor * static_cast<double>(device->info().l2_bytes);
    if (bytes >= 2 * wanted || bytes == 0) return 1;
    return static_cast<int>(std::clamp(std::ceil(wanted / bytes) + 1, 3.0, kMostCopies));
}

std::int64_t elements(std::int64_t rows, std::int64_t heads, std::int64_t dim) { return rows * heads * dim; }

}  // namespace

class TuneCase::Tensors {
public:
    virtual ~Tensors() = default;
};

class TuneCase::DecodeTensorSets : public Tensors {
public:
    DecodeTensorSets(const DevicePtr& device, const support::DecodeCase& which, const TunePolicy& policy) {
        const double bytes = static_cast<double>(which.kv_bytes());
        if (bytes <= kExactBytes) {
            const support::Inputs inputs = support::make_inputs(which);
            first_.emplace(device, which, inputs);
            for (int i = 1; i < copies_of(bytes, device, policy); ++i)
                kv_.push_back({DeviceBuffer(device, inputs.k.data(), inputs.k.bytes()),
                               DeviceBuffer(device, inputs.v.data(), inputs.v.bytes())});
        } else {
            first_.emplace(device, which);
        }
        sets_.push_back(first_->tensors());
        for (const DeviceKv& kv : kv_) sets_.push_back(first_->tensors_with(kv));
    }
    std::span<const DecodeTensors> sets() const { return sets_; }

private:
    std::optional<DeviceCase> first_;
    std::vector<DeviceKv> kv_;
    std::vector<DecodeTensors> sets_;
};

class TuneCase::PackTensorSets : public Tensors {
public:
    PackTensorSets(const DevicePtr& device, const PackedTuneCase& which, const Pack& pack, const TunePolicy& policy) {
        const support::PackedVariant& shape = which.variant;
        const auto filled = [&](support::Stream stream, std::int64_t rows, std::int64_t heads) {
            support::HalfBuffer values(elements(rows, heads, shape.head_dim));
            support::fill_values(shape.dtype, which.spec.seed, stream, 0, values.span());
            return values;
        };
        const auto q = filled(support::Stream::q, pack.rows(), shape.q_heads);
        const auto k = filled(support::Stream::k, pack.keys(), shape.kv_heads);
        const auto v = filled(support::Stream::v, pack.keys(), shape.kv_heads);
        q_ = DeviceBuffer(device, q.data(), q.bytes());
        out_ = DeviceBuffer(device, q.bytes());
        lse_ = DeviceBuffer(device, static_cast<std::size_t>(pack.rows() * shape.q_heads) * 4);
        for (int i = 0; i < copies_of(static_cast<double>(k.bytes() + v.bytes()), device, policy); ++i) {
            kv_.push_back({DeviceBuffer(device, k.data(), k.bytes()), DeviceBuffer(device, v.data(), v.bytes())});
            sets_.push_back(
                {.q = q_.as(), .k = kv_.back().k.as(), .v = kv_.back().v.as(), .out = out_.as(), .lse = lse_.as<float>()});
        }
        if (which.pass == Family::packed_forward) return;
        dq_ = DeviceBuffer(device, q.bytes());
        dk_ = DeviceBuffer(device, k.bytes());
        dv_ = DeviceBuffer(device, v.bytes());
        for (const PackedTensors& set : sets_) backward_.push_back(packed_gradients(set, dq_.as(), dk_.as(), dv_.as()));
    }
    std::span<const PackedTensors> sets() const { return sets_; }
    /// Of a backward pass, which begins with the results of a forward one: the same of all sets.
    std::span<const PackedGradients> backward(Engine& engine, const DevicePtr& device, const PackedProblem& problem,
                                              const Pack& pack) const {
        PackedPlan plan = engine.plan_packed(problem, pack);
        engine.launch(plan, sets_.front(), nullptr);
        device->synchronize(nullptr);
        return backward_;
    }

private:
    DeviceBuffer q_, out_, lse_, dq_, dk_, dv_;
    std::vector<DeviceKv> kv_;
    std::vector<PackedTensors> sets_;
    std::vector<PackedGradients> backward_;
};

TuneCase::TuneCase(const TuneJob& job) : job_(job) {
    if (job.packed) {
        pack_ = Pack::from_segments(job.packed->spec.segments);
    } else {
        decode_ = job.build();
    }
}

TuneCase::~TuneCase() = default;

tune::CandidateSet TuneCase::candidates(const tune::DeviceFacts& device, const TuneOptions& options,
                                        std::span<const DecodeConfig> wanted) const {
    if (pack_) return tune::find_packed_candidates({job_.packed->pass, job_.packed->problem()}, *pack_, device, options, wanted);
    return tune::find_candidates(job_.problem, decode_.forest, order_of(decode_.forest), device, options, wanted);
}

double TuneCase::bytes() const {
    if (!pack_) return static_cast<double>(decode_.kv_bytes());
    const support::PackedVariant& shape = job_.packed->variant;
    const double forward = 4.0 * static_cast<double>(elements(pack_->rows(), shape.q_heads, shape.head_dim) +
                                                     elements(pack_->keys(), shape.kv_heads, shape.head_dim));
    // Gradients, and fp32 sums of dQ at least.
    return job_.packed->pass == Family::packed_backward ? 2.5 * forward : forward;
}

std::unique_ptr<tune::Measurer> TuneCase::measurer(Engine& engine, const DevicePtr& device, const TunePolicy& policy) {
    if (pack_) {
        auto made = std::make_unique<PackTensorSets>(device, *job_.packed, *pack_, policy);
        const PackTensorSets& tensors = *made;
        tensors_ = std::move(made);
        const PackedProblem problem = job_.packed->problem();
        auto subject = job_.packed->pass == Family::packed_backward
                           ? backward_subject(engine, problem, *pack_, tensors.backward(engine, device, problem, *pack_))
                           : packed_subject(engine, problem, *pack_, tensors.sets());
        return std::make_unique<CudaMeasurer>(device, std::move(subject), policy);
    }
    auto made = std::make_unique<DecodeTensorSets>(device, decode_, policy);
    const auto sets = made->sets();
    tensors_ = std::move(made);
    return std::make_unique<CudaMeasurer>(device, decode_subject(engine, job_.problem, decode_.forest, sets), policy);
}

KernelKey key_of(const TuneJob& job, const DecodeConfig& config, const std::string& target) {
    if (!job.packed) return decode_key(job.problem, config, target);
    return packed_key(job.packed->pass, job.packed->problem(), tune::as_packed(config), target);
}

tune::Lookup look_up(const tune::Database& database, const TuneJob& job) {
    if (!job.packed) return database.find(job.bucket, job.problem, {});
    return database.find(job.bucket, job.packed->problem(), {});
}

}  // namespace sapwood::tool
