// SPDX-License-Identifier: Apache-2.0
#include "engine/cuda_measurer.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdio>
#include <functional>

#include "base/error.h"
#include "sapwood/error.h"

namespace sapwood {
namespace {

constexpr int kMostCalls = 1024;  // of a graph
constexpr int kWarmUpMs = 30;     // clocks rise from idle before the first candidate is timed

float widen(DType dtype, std::uint16_t bits) {
    if (dtype == DType::bf16) return std::bit_cast<float>(static_cast<std::uint32_t>(bits) << 16);
    const std::uint32_t sign = (bits & 0x8000u) << 16, exponent = bits >> 10 & 31, mantissa = bits & 0x3ffu;
    if (exponent == 31) return std::bit_cast<float>(sign | 0x7f800000u | mantissa << 13);
    const float magnitude = exponent == 0 ? std::ldexp(static_cast<float>(mantissa), -24)
                                          : std::bit_cast<float>((exponent + 112) << 23 | mantissa << 13);
    return sign ? -magnitude : magnitude;
}

/// Every 16-bit pattern: results are millions of numbers, checked for each candidate.
std::vector<float> widened(DType dtype) {
    std::vector<float> table(1 << 16);
    for (std::uint32_t bits = 0; bits < table.size(); ++bits) table[bits] = widen(dtype, static_cast<std::uint16_t>(bits));
    return table;
}

/// Two results of the same call may differ by the order of their sums alone: by the tolerance of the dtype, in the norm of the
/// whole and, four times as much, of a request.
double tolerance(DType dtype) { return dtype == DType::fp16 ? 1e-3 : 8e-3; }

std::string difference(DType dtype, std::span<const float> got, std::span<const float> want, std::size_t row) {
    double all_difference = 0, all_norm = 0, worst = 0, largest = 0;
    std::size_t not_numbers = 0;
    for (std::size_t at = 0; at < got.size(); at += row) {
        double row_difference = 0, row_norm = 0;
        for (std::size_t i = at; i < at + row; ++i) {
            if (!std::isfinite(got[i])) {
                ++not_numbers;
                continue;
            }
            const double d = static_cast<double>(got[i]) - want[i];
            largest = std::max(largest, std::abs(d));
            row_difference += d * d;
            row_norm += static_cast<double>(want[i]) * want[i];
        }
        all_difference += row_difference, all_norm += row_norm;
        if (row_difference > 0) worst = std::max(worst, std::sqrt(row_difference / std::max(row_norm, 1e-30)));
    }
    const double whole = all_difference > 0 ? std::sqrt(all_difference / std::max(all_norm, 1e-30)) : 0;
    if (not_numbers == 0 && whole <= tolerance(dtype) && worst <= 4 * tolerance(dtype)) return {};
    char text[160];
    std::snprintf(text, sizeof text, "max_abs=%.3g, relative %.2e, worst request %.2e (allowed %.0e, %.0e), %zu NaN or Inf",
                  largest, whole, worst, tolerance(dtype), 4 * tolerance(dtype), not_numbers);
    return text;
}

}  // namespace

template <class Body>
auto CudaMeasurer::guarded(const Body& body) {
    try {
        return body();
    } catch (const Error& error) {
        if (error.code() != ErrorCode::kDriver) throw;
        try {
            device_->synchronize(nullptr);
        } catch (const Error&) {
            throw tune::DeviceLost(error.what());
        }
        throw;
    }
}

CudaMeasurer::CudaMeasurer(std::shared_ptr<cuda::Device> device, std::unique_ptr<TuneSubject> subject, const TunePolicy& policy)
    : device_(std::move(device)),
      subject_(std::move(subject)),
      result_(subject_->result()),
      policy_(policy),
      values_of_(widened(result_.dtype)) {
    stream_ = device_->create_stream();
    start_ = device_->create_event();
    stop_ = device_->create_event();
}

CudaMeasurer::~CudaMeasurer() {
    for (auto& [config, ready] : ready_) device_->destroy_graph(ready.graph);
    device_->destroy_event(start_);
    device_->destroy_event(stop_);
    device_->destroy_stream(stream_);
}

CudaMeasurer::Ready& CudaMeasurer::ready(const DecodeConfig& config) {
    const auto found = ready_.find(config);
    if (found == ready_.end())
        raise(ErrorCode::kInternal, "configuration " + tune::config_text(config) + " is measured before it is built");
    return found->second;
}

tune::Measurer::Built CudaMeasurer::build(const DecodeConfig& config) {
    Built built;
    try {
        guarded([&] {
            TuneSubject::Prepared plan = subject_->prepare(config, stream_);
            built.registers = plan.report.registers;
            built.spill_bytes = plan.report.spill_bytes;
            ready_.insert_or_assign(config, Ready{.plan = std::move(plan)});
        });
    } catch (const Error& error) {
        built.failure = error.what();
    }
    return built;
}

CudaMeasurer::Values CudaMeasurer::run(const DecodeConfig& config) {
    constexpr std::uint8_t kNaN = 0xff;  // all ones is a NaN in every type
    const auto address = [](const void* data) { return reinterpret_cast<std::uint64_t>(data); };
    const auto elements = [](const TuneResult::Tensor& tensor) { return static_cast<std::size_t>(tensor.rows * tensor.row); };
    const std::size_t lses = result_.lse != nullptr ? static_cast<std::size_t>(result_.lses) : 0;
    for (const TuneResult::Tensor& tensor : result_.tensors)
        device_->fill(address(tensor.data), kNaN, elements(tensor) * 2, stream_);
    if (lses > 0) device_->fill(address(result_.lse), kNaN, lses * 4, stream_);
    ready(config).plan.launch(0, stream_);
    Values values;
    for (const TuneResult::Tensor& tensor : result_.tensors) {
        std::vector<std::uint16_t> bits(elements(tensor));
        device_->copy_to_host(bits.data(), address(tensor.data), bits.size() * 2, stream_);
        std::vector<float>& widened = values.tensors.emplace_back(bits.size());
        for (std::size_t i = 0; i < bits.size(); ++i) widened[i] = values_of_[bits[i]];
    }
    values.lse.resize(lses);
    if (lses > 0) device_->copy_to_host(values.lse.data(), address(result_.lse), lses * 4, stream_);
    for (const std::int32_t dead : result_.unwritten) {
        const TuneResult::Tensor& out = result_.tensors.front();
        std::fill_n(values.tensors.front().begin() + dead * out.row, out.row, 0.0f);
        const std::int64_t heads = result_.lses / out.rows;
        if (lses > 0) std::fill_n(values.lse.begin() + dead * heads, heads, 0.0f);
    }
    return values;
}

std::string CudaMeasurer::check(const DecodeConfig& config) {
    return guarded([&]() -> std::string {
        Values values = run(config);
        // The first is the reference, and is compared with itself: that finds what is no number.
        const bool first = reference_.tensors.empty();
        const Values& want = first ? values : reference_;
        std::string fault;
        for (std::size_t t = 0; t < values.tensors.size() && fault.empty(); ++t)
            fault = difference(result_.dtype, values.tensors[t], want.tensors[t], static_cast<std::size_t>(result_.tensors[t].row));
        for (std::size_t i = 0; i < values.lse.size() && fault.empty() && !first; ++i) {
            if (values.lse[i] != want.lse[i] && !(std::abs(values.lse[i] - want.lse[i]) <= 1e-3f))
                fault = "lse " + std::to_string(values.lse[i]) + " instead of " + std::to_string(want.lse[i]) + " in row " +
                        std::to_string(i);
        }
        if (first) reference_ = std::move(values);
        return fault;
    });
}

double CudaMeasurer::time(const std::function<void()>& enqueue) {
    device_->record(start_, stream_);
    enqueue();
    device_->record(stop_, stream_);
    return device_->elapsed_us(start_, stop_);
}

void CudaMeasurer::capture(Ready& ready) {
    const std::size_t sets = subject_->sets();
    const auto launch = [&](std::size_t set) { ready.plan.launch(set, stream_); };
    const auto next = [&] { return next_set_++ % sets; };
    if (ready_.size() > 0 && next_set_ == 0) {  // the first candidate of this measurer
        for (double spent = 0; spent < kWarmUpMs * 1000;)
            spent += time([&] {
                         for (int i = 0; i < 20; ++i) launch(next());
                     }) +
                     1;
    }
    launch(next());
    // Launches one by one take longer than in a graph unless the device has a queue of them.
    double once = 0;
    for (const int count : {2, 16}) {
        once = std::max(1.0, time([&] {
                                 for (int i = 0; i < count; ++i) launch(next());
                             }) / count);
        if (once > 100) break;
    }
    // Every set has its turn in each graph, so that none is in L2 when its turn comes again.
    const double asked = std::ceil(policy_.least_graph_us / once);
    ready.calls = static_cast<int>(std::clamp(std::max(asked, static_cast<double>(sets)), 1.0, double{kMostCalls}));
    device_->begin_capture(stream_);
    try {
        for (int i = 0; i < ready.calls; ++i) launch(static_cast<std::size_t>(i) % sets);
    } catch (...) {
        try {
            device_->destroy_graph(device_->end_capture(stream_));  // a capture must be ended, broken or not
        } catch (const Error&) {}
        throw;
    }
    ready.graph = device_->end_capture(stream_);
    device_->launch_graph(ready.graph, stream_);  // the first replay uploads it
}

double CudaMeasurer::sample(const DecodeConfig& config) {
    return guarded([&] {
        Ready& it = ready(config);
        if (it.graph == nullptr) capture(it);
        return time([&] { device_->launch_graph(it.graph, stream_); }) / it.calls;
    });
}

void CudaMeasurer::release(const DecodeConfig& config) {
    const auto found = ready_.find(config);
    if (found == ready_.end()) return;
    device_->destroy_graph(found->second.graph);
    ready_.erase(found);
}

}  // namespace sapwood
