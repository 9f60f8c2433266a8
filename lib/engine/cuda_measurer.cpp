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

std::string CudaMeasurer::check(const DecodeConfig& config) {
    return guarded([&]() -> std::string {
        const auto lses = static_cast<std::size_t>(result_.rows * result_.heads);
        const auto row = static_cast<std::size_t>(result_.heads * result_.dim),
                   elements = static_cast<std::size_t>(result_.rows) * row;
        const auto out = reinterpret_cast<std::uint64_t>(result_.out), lse = reinterpret_cast<std::uint64_t>(result_.lse);
        device_->fill(out, 0xff, elements * 2, stream_);  // all ones is a NaN in every type
        if (lse != 0) device_->fill(lse, 0xff, lses * 4, stream_);
        ready(config).plan.launch(0, stream_);
        std::vector<std::uint16_t> bits(elements);
        device_->copy_to_host(bits.data(), out, elements * 2, stream_);
        std::vector<float> values(elements), lse_values(lse != 0 ? lses : 0);
        for (std::size_t i = 0; i < elements; ++i) values[i] = values_of_[bits[i]];
        if (lse != 0) device_->copy_to_host(lse_values.data(), lse, lses * 4, stream_);
        const auto heads = static_cast<std::size_t>(result_.heads);
        for (const std::int32_t dead : result_.unwritten) {
            const auto at = static_cast<std::size_t>(dead);
            std::fill_n(values.begin() + static_cast<std::ptrdiff_t>(at * row), row, 0.0f);
            if (lse != 0) std::fill_n(lse_values.begin() + static_cast<std::ptrdiff_t>(at * heads), heads, 0.0f);
        }
        if (reference_.empty()) {
            // The first is the reference, and is compared with itself: that finds what is no number.
            std::string fault = difference(result_.dtype, values, values, row);
            reference_ = std::move(values);
            reference_lse_ = std::move(lse_values);
            return fault;
        }
        std::string fault = difference(result_.dtype, values, reference_, row);
        for (std::size_t i = 0; i < lse_values.size() && fault.empty(); ++i) {
            const float got = lse_values[i], want = reference_lse_[i];
            if (got != want && !(std::abs(got - want) <= 1e-3f))
                fault = "lse " + std::to_string(got) + " instead of " + std::to_string(want) + " in row " + std::to_string(i);
        }
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
