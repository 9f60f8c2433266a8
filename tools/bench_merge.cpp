// SPDX-License-Identifier: Apache-2.0
// sapwood bench-merge: times merges of partial results on a GPU against the time that copying their bytes would take, and checks
// them. On the host target it only checks, on fewer rows.
#include <cmath>
#include <limits>

#include "common.h"
#include "gpu.h"
#include "oracle/merge_oracle.h"
#include "support/compare.h"
#include "support/half.h"
#include "terminal.h"

namespace sapwood::tool {
namespace {

constexpr std::int64_t kBlock = 999'983;  // values before they repeat: prime, so that no two parts of a row are alike
constexpr std::int64_t kHostRows = 24;

struct Case {
    const char* name;
    std::int64_t rows;
    std::int32_t heads, head_dim, parts;
    StateDType part, out;
    MergeLayout layout;
    bool indptr = false;  // rows have 1 to 2 * parts - 1 parts in turn
};

constexpr StateDType kFp16 = StateDType::fp16, kBf16 = StateDType::bf16, kFp32 = StateDType::fp32;
constexpr Case kCases[] = {
    {"copy: one part", 8192, 32, 128, 1, kBf16, kBf16, MergeLayout::rows_parts},
    {"prefix + tree, 1 x 69 nodes", 69, 32, 128, 2, kFp16, kFp16, MergeLayout::separate},
    {"prefix + tree, 16 x 64 nodes", 1024, 32, 128, 2, kFp16, kFp16, MergeLayout::separate},
    {"prefix + chunk, 8192 rows", 8192, 32, 128, 2, kBf16, kBf16, MergeLayout::separate},
    {"states [rows, 4, heads, dim]", 4096, 32, 128, 4, kFp16, kFp16, MergeLayout::rows_parts},
    {"states [rows, 16, heads, dim]", 1024, 32, 128, 16, kFp16, kFp16, MergeLayout::rows_parts},
    {"states by indptr, 8 on average", 2048, 32, 128, 8, kBf16, kBf16, MergeLayout::rows_parts, true},
    {"split-KV workspace, 16 x 40", 16, 32, 128, 40, kFp32, kBf16, MergeLayout::parts_rows},
    {"split-KV workspace, 512 x 8", 512, 32, 128, 8, kFp32, kBf16, MergeLayout::parts_rows},
    {"latent, dim 512", 4096, 16, 512, 2, kBf16, kBf16, MergeLayout::separate},
    {"dim 64", 8192, 48, 64, 2, kBf16, kBf16, MergeLayout::separate},
};

struct MergeBenchOptions {
    std::string target = "cuda", cache;
    double bandwidth = 3.0, budget = 0.5;
    JsonLines json;
};

/// The values that every tensor repeats, as bytes of its type and as numbers.
struct Values {
    std::vector<std::uint8_t> bytes;
    std::vector<double> numbers;

    Values(StateDType dtype, support::Stream stream, double spread, bool some_empty) {
        const std::size_t size = state_dtype_bytes(dtype);
        bytes.resize(static_cast<std::size_t>(kBlock) * size);
        numbers.resize(static_cast<std::size_t>(kBlock));
        for (std::size_t i = 0; i < numbers.size(); ++i) {
            float value = support::value(7, stream, i) * static_cast<float>(spread);
            if (some_empty && i % 31 == 3) value = (i % 2 ? 1 : -1) * std::numeric_limits<float>::infinity();
            std::uint16_t half = 0;
            if (dtype != kFp32) {
                half = support::round_to(dtype == kFp16 ? DType::fp16 : DType::bf16, value);
                value = support::widen(dtype == kFp16 ? DType::fp16 : DType::bf16, half);
            }
            std::memcpy(&bytes[i * size], dtype == kFp32 ? static_cast<void*>(&value) : &half, size);
            numbers[i] = value;
        }
    }
    double at(std::int64_t i) const { return numbers[static_cast<std::size_t>(i % kBlock)]; }
    std::vector<std::uint8_t> repeated(std::int64_t count, StateDType dtype) const {
        std::vector<std::uint8_t> all(static_cast<std::size_t>(count) * state_dtype_bytes(dtype));
        for (std::size_t to = 0; to < all.size(); to += bytes.size())
            std::memcpy(&all[to], bytes.data(), std::min(bytes.size(), all.size() - to));
        return all;
    }
};

/// Memory of one copy of a case, on a device or here.
class Copy {
public:
    Copy(const DevicePtr& device, const Case& which, const std::vector<std::int32_t>& indptr,
         const std::vector<std::uint8_t>& parts, const std::vector<std::uint8_t>& lses)
        : device_(device) {
        const auto out_bytes = static_cast<std::size_t>(which.rows * which.heads * which.head_dim) * state_dtype_bytes(which.out);
        char* values = static_cast<char*>(put(parts.data(), parts.size()));
        char* logarithms = static_cast<char*>(put(lses.data(), lses.size()));
        const std::size_t tensors = which.layout == MergeLayout::separate ? static_cast<std::size_t>(which.parts) : 1;
        for (std::size_t i = 0; i < tensors; ++i)
            tensors_.parts[i] = {.out = values + i * (parts.size() / tensors),
                                 .lse = reinterpret_cast<float*>(logarithms + i * (lses.size() / tensors))};
        tensors_.count = which.indptr ? 0 : which.parts;
        if (which.indptr) tensors_.indptr = static_cast<std::int32_t*>(put(indptr.data(), indptr.size() * 4));
        const std::vector<std::uint8_t> poison(std::max(out_bytes, static_cast<std::size_t>(which.rows * which.heads) * 4), 0xff);
        tensors_.out = put(poison.data(), out_bytes);
        tensors_.lse = static_cast<float*>(put(poison.data(), static_cast<std::size_t>(which.rows * which.heads) * 4));
    }
    const MergeTensors& tensors() const { return tensors_; }
    void fetch(std::vector<std::uint8_t>& to, const void* from) const {
        if (device_)
            device_->copy_to_host(to.data(), reinterpret_cast<std::uint64_t>(from), to.size(), nullptr);
        else
            std::memcpy(to.data(), from, to.size());
    }

private:
    void* put(const void* from, std::size_t bytes) {
        if (device_) {
            buffers_.emplace_back(device_, from, bytes);
            return buffers_.back().as();
        }
        const auto* begin = static_cast<const std::uint8_t*>(from);
        here_.emplace_back(begin, begin + bytes);
        return here_.back().data();
    }

    DevicePtr device_;
    std::vector<DeviceBuffer> buffers_;
    std::vector<std::vector<std::uint8_t>> here_;
    MergeTensors tensors_;
};

class Problem {
public:
    Problem(const Case& given, bool on_host)
        : which(given), values_(which.part, support::Stream::v, 1, false), lses_(kFp32, support::Stream::k, 3, true) {
        if (on_host) which.rows = std::min(which.rows, kHostRows);
        total_ = which.rows * which.parts;
        if (which.indptr) {
            indptr_ = {0};
            for (std::int64_t row = 0; row < which.rows; ++row)
                indptr_.push_back(indptr_.back() + static_cast<std::int32_t>(1 + row % (2 * which.parts - 1)));
            total_ = indptr_.back();
        }
        parts_ = values_.repeated(total_ * which.heads * which.head_dim, which.part);
        part_lses_ = lses_.repeated(total_ * which.heads, kFp32);
    }

    MergeProblem problem() const {
        return {.heads = which.heads,
                .head_dim = which.head_dim,
                .part_dtype = which.part,
                .out_dtype = which.out,
                .layout = which.layout,
                .usual_parts = which.parts};
    }
    Copy copy(const DevicePtr& device) const { return Copy(device, which, indptr_, parts_, part_lses_); }
    /// Each once: parts and their logarithms, out and its logarithms.
    double bytes() const {
        const double out = static_cast<double>(which.rows) * which.heads *
                           (which.head_dim * static_cast<double>(state_dtype_bytes(which.out)) + 4);
        return static_cast<double>(parts_.size() + part_lses_.size()) + out + static_cast<double>(indptr_.size()) * 4;
    }

    /// Relative error of up to 64 rows, all of their heads; infinite if an element or a logarithm is wrong.
    double error(const Copy& copy) const {
        std::vector<std::uint8_t> out(static_cast<std::size_t>(which.rows * which.heads * which.head_dim) *
                                      state_dtype_bytes(which.out));
        std::vector<std::uint8_t> lse(static_cast<std::size_t>(which.rows * which.heads) * 4);
        copy.fetch(out, copy.tensors().out);
        copy.fetch(lse, copy.tensors().lse);
        std::vector<double> got, want;
        bool fine = true;
        for (const std::int32_t row : support::spread(static_cast<std::int32_t>(which.rows), 64)) {
            for (std::int32_t head = 0; head < which.heads; ++head) {
                const oracle::State merged =
                    oracle::merge(parts_of(row, head), static_cast<std::size_t>(which.head_dim), std::exp(1.0));
                want.insert(want.end(), merged.out.begin(), merged.out.end());
                const std::int64_t at = std::int64_t{row} * which.heads + head;
                for (std::int32_t d = 0; d < which.head_dim; ++d) got.push_back(number(out, at * which.head_dim + d, which.out));
                const double its = number(lse, at, kFp32);
                fine &= its == merged.lse || std::abs(its - merged.lse) < 1e-4;
            }
        }
        return fine ? support::relative_error(got, want) : std::numeric_limits<double>::infinity();
    }
    double tolerance() const {
        return which.out == kFp32 ? 1e-5 : support::tolerance(which.out == kFp16 ? DType::fp16 : DType::bf16);
    }

    Case which;

private:
    std::vector<oracle::State> parts_of(std::int64_t row, std::int32_t head) const {
        std::vector<oracle::State> states;
        const auto r = static_cast<std::size_t>(row);
        const std::int64_t count = which.indptr ? indptr_[r + 1] - indptr_[r] : which.parts;
        for (std::int64_t i = 0; i < count; ++i) {
            const std::int64_t result = which.indptr                              ? indptr_[r] + i
                                        : which.layout == MergeLayout::rows_parts ? row * which.parts + i
                                                                                  : i * which.rows + row;
            const std::int64_t at = result * which.heads + head;
            oracle::State state = {{}, lses_.at(at)};
            for (std::int32_t d = 0; d < which.head_dim; ++d) state.out.push_back(values_.at(at * which.head_dim + d));
            states.push_back(std::move(state));
        }
        return states;
    }
    static double number(const std::vector<std::uint8_t>& from, std::int64_t at, StateDType dtype) {
        float single = 0;
        std::uint16_t half = 0;
        const std::size_t size = state_dtype_bytes(dtype);
        std::memcpy(dtype == kFp32 ? static_cast<void*>(&single) : &half, &from[static_cast<std::size_t>(at) * size], size);
        return dtype == kFp32 ? single : support::widen(dtype == kFp16 ? DType::fp16 : DType::bf16, half);
    }

    Values values_, lses_;
    std::int64_t total_ = 0;  // partial results a head
    std::vector<std::int32_t> indptr_;
    std::vector<std::uint8_t> parts_, part_lses_;
};

/// Microseconds a call: graphs of 20 calls whose memory takes turns.
std::vector<double> time_calls(Engine& engine, GpuStream& stream, const Problem& problem, const std::vector<Copy>& copies,
                               double budget) {
    const std::size_t count = (copies.size() + kGraphCalls - 1) / kGraphCalls;
    std::vector<void*> graphs;
    std::size_t next = 0;
    for (std::size_t i = 0; i < count; ++i)
        graphs.push_back(stream.capture([&](void* on) {
            for (int call = 0; call < kGraphCalls; ++call)
                engine.merge_states(problem.problem(), copies[next++ % copies.size()].tensors(), problem.which.rows, on);
        }));
    const auto replay = [&](int i) {
        stream.device().launch_graph(graphs[static_cast<std::size_t>(i) % graphs.size()], stream.get());
    };
    for (int i = 0; i < static_cast<int>(count) + 2; ++i) replay(i);
    const double once = median(stream.time(3, nullptr, replay));
    std::vector<double> times = stream.time(static_cast<int>(std::clamp(budget * 1e6 / once, 7.0, 200.0)), nullptr, replay);
    for (double& time : times) time /= kGraphCalls;
    stream.destroy_graphs();
    return times;
}

int bench_merge(MergeBenchOptions& options) {
    Engine engine({.target = options.target, .cache_dir = options.cache});
    if (!engine.has_device()) throw Stop{kNotPossible, "bench-merge needs a target that can launch, not " + options.target};
    const DevicePtr device = device_of(options.target, true);
    std::optional<GpuStream> stream;
    if (device) stream.emplace(device);
    std::FILE* notes = options.json.to_stdout() ? stderr : stdout;
    std::fprintf(notes,
                 "%s; floor = bytes that are read or written at %.2f TB/s; graphs of %d calls, no call's bytes in L2; medians\n",
                 engine.device_name().c_str(), options.bandwidth, kGraphCalls);
    Table table({{"case", -32}, {"kernel", -40}, {"MB", 8}, {"floor us", 9}, {"us", 9}, {"GB/s", 7}, {"of floor", 8}, {"error", 8}},
                notes);
    std::size_t failed = 0;
    for (const Case& which : kCases) {
        const Problem problem(which, device == nullptr);
        const KernelReport kernel = engine.prepare_merge(problem.problem());
        std::vector<Copy> copies;
        const int wanted = device ? static_cast<int>(std::clamp(std::ceil(kRotateBytes / problem.bytes()), 2.0, 200.0)) : 1;
        for (int i = 0; i < wanted; ++i) copies.push_back(problem.copy(device));
        const double us = device ? median(time_calls(engine, *stream, problem, copies, options.budget)) : 0;
        if (!device) engine.merge_states(problem.problem(), copies[0].tensors(), problem.which.rows);
        const double error = problem.error(copies.back()), floor = problem.bytes() / options.bandwidth / 1e6;
        const bool bad = !(error <= problem.tolerance());
        failed += bad;
        options.json.write({{"case", which.name},
                            {"kernel", to_json(kernel)},
                            {"bytes", problem.bytes()},
                            {"floor_us", floor},
                            {"us", us},
                            {"error", bad && !std::isfinite(error) ? nlohmann::json(nullptr) : nlohmann::json(error)},
                            {"ok", !bad}});
        if (options.json.to_stdout()) continue;
        table.row({which.name, kernel.key, text("%.1f", problem.bytes() / 1e6), text("%.2f", floor),
                   us > 0 ? text("%.2f", us) : "-", us > 0 ? text("%.0f", problem.bytes() / us / 1e3) : "-",
                   us > 0 ? text("%.2f", floor / us) : "-", text(bad ? "%.1e !" : "%.1e", error)});
    }
    std::fprintf(notes, "%zu cases, %zu wrong\n", std::size(kCases), failed);
    return failed ? kCheckFailed : kOk;
}

}  // namespace

void add_bench_merge(CLI::App& app, Action& action) {
    auto options = std::make_shared<MergeBenchOptions>();
    CLI::App* sub =
        app.add_subcommand("bench-merge", "time merges of partial results on a GPU against a copy of their bytes, checked");
    sub->add_option("--target", options->target, "cuda, cuda:N, or host (only checks)")->capture_default_str();
    sub->add_option("--bandwidth", options->bandwidth, "TB/s of the floor")->capture_default_str();
    sub->add_option("--budget", options->budget, "seconds of GPU time a case")->capture_default_str();
    sub->add_option("--cache-dir", options->cache, "kernel cache");
    options->json.add_option(*sub);
    sub->callback([options, &action] { action = [options] { return bench_merge(*options); }; });
}

}  // namespace sapwood::tool
