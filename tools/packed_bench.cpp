// SPDX-License-Identifier: Apache-2.0
#include <cmath>
#include <map>

#include "packed_case.h"
#include "support/compare.h"
#include "terminal.h"

namespace sapwood::tool {
namespace {

/// What the oracle says of a pass.
struct Verdict {
    double error;
    bool passes;
    nlohmann::json figures;
};

/// Time of a pass, and what it does, for a line of the table.
struct Timed {
    std::vector<double> us;
    double flops = 0, plan_us = 0;
    std::int64_t tiles = 0, partial_tiles = 0, pairs_in_tiles = 0;
    std::optional<Verdict> verdict;
};

class PackedBench {
public:
    PackedBench(Engine& engine, const DevicePtr& device, const PackedRunOptions& options)
        : engine_(engine), device_(device), options_(options), stream_(device) {}

    Timed forward(const PackedItem& item, const Pack& pack, PackedValues& values, PackedOnDevice& there) {
        const PackedProblem problem = item.variant.problem();
        const PackedConfig config = packed_config(options_.config);
        PackedPlan plan = engine_.plan_packed(problem, pack, config);
        const PackedPlanInfo info = plan.info();
        Timed timed = {.flops = info.flops, .tiles = info.tiles, .partial_tiles = info.partial_tiles};
        timed.pairs_in_tiles = info.tiles * info.config.warps * 16 * info.config.block_kv;
        timed.plan_us = planning([&] { engine_.plan_packed(problem, packed_trees(item, options_.arrays), config); });
        engine_.prepare(plan);
        timed.us = time([&](int) { engine_.launch(plan, there.tensors, stream_.get()); });
        if (!options_.check) return timed;
        device_->synchronize(stream_.get());
        there.download();
        const PackedChecked checked = check_packed(item, pack, values, options_.check_rows);
        timed.verdict = {checked.out_error,
                         checked.passes(item.variant.dtype),
                         {{"error", checked.out_error}, {"worst_row", checked.worst_row}, {"lse_error", checked.lse_error}}};
        return timed;
    }

    /// On the forward pass' results; Q stands in for the gradient of the output.
    Timed backward(const PackedItem& item, const Pack& pack, const PackedValues& values, const PackedOnDevice& there,
                   const PackedBackwardOptions& how) {
        const PackedProblem problem = item.variant.problem();
        PackedBackwardPlan plan = engine_.plan_packed_backward(problem, pack, how);
        const PackedBackwardInfo info = plan.info();
        Timed timed = {.flops = info.flops, .tiles = info.tiles, .partial_tiles = info.partial_tiles};
        timed.pairs_in_tiles = info.tiles * 64 * info.config.block_kv;
        timed.plan_us = planning([&] { engine_.plan_packed_backward(problem, packed_trees(item, options_.arrays), how); });
        engine_.prepare(plan);
        const auto bytes = [](std::int64_t rows, std::int64_t heads, std::int64_t dim) {
            return static_cast<std::size_t>(rows * heads * dim) * 2;
        };
        const DeviceBuffer dq(device_, bytes(info.rows, problem.q_heads, problem.head_dim));
        const DeviceBuffer dk(device_, bytes(info.keys, problem.kv_heads, problem.head_dim));
        const DeviceBuffer dv(device_, bytes(info.keys, problem.kv_heads, problem.head_dim));
        for (const DeviceBuffer* gradient : {&dq, &dk, &dv}) device_->fill(gradient->address(), 0xff, gradient->bytes(), nullptr);
        device_->synchronize(nullptr);
        const PackedGradients call = packed_gradients(there.tensors, dq.as(), dk.as(), dv.as());
        timed.us = time([&](int) { engine_.launch(plan, call, stream_.get()); });
        if (!options_.check) return timed;
        device_->synchronize(stream_.get());
        PackedGradientValues gradients = {support::HalfBuffer(values.q.size()), support::HalfBuffer(values.k.size()),
                                          support::HalfBuffer(values.v.size()), values.q};
        dq.download(gradients.dq.data(), gradients.dq.bytes());
        dk.download(gradients.dk.data(), gradients.dk.bytes());
        dv.download(gradients.dv.data(), gradients.dv.bytes());
        const PackedGradientsChecked checked = check_packed_gradients(item, pack, values, gradients, options_.check_rows);
        timed.verdict = {checked.worst(),
                         checked.passes(item.variant.dtype),
                         {{"error", checked.worst()},
                          {"dq_error", checked.dq_error},
                          {"dk_error", checked.dk_error},
                          {"dv_error", checked.dv_error}}};
        return timed;
    }

private:
    template <class Plan>
    double planning(const Plan& plan) const {
        std::vector<double> times;
        for (double begin = now_ms(); times.size() < 5 || (times.size() < 50 && now_ms() - begin < 100);) {
            const double start = now_ms();
            plan();
            times.push_back((now_ms() - start) * 1e3);
        }
        return median(times);
    }
    std::vector<double> time(const std::function<void(int)>& launch) {
        for (int i = 0; i < 3; ++i) launch(i);
        const double once = stream_.time(1, nullptr, launch)[0];
        return stream_.time(static_cast<int>(std::clamp(options_.budget * 1e6 / once, 5.0, 50.0)), nullptr, launch);
    }

    Engine& engine_;
    DevicePtr device_;
    const PackedRunOptions& options_;
    GpuStream stream_;
};

}  // namespace

int bench_packed(const Selection& cases, JsonLines& json, const PackedRunOptions& options) {
    const auto items = packed_items(cases);
    if (cuda::device_count() == 0)
        throw Stop{kNotPossible, "bench needs a GPU: " + cuda::driver_problem() + ". `sapwood run` runs on the host target"};
    Engine engine({.target = options.target, .cache_dir = options.cache});
    const DevicePtr device = device_of(options.target, engine.has_device());
    if (!device) throw Stop{kNotPossible, "bench needs a GPU target, not " + options.target};
    std::FILE* notes = json.to_stdout() ? stderr : stdout;
    std::fprintf(notes, "%s, %d SMs; medians, FLOPs of visible pairs alone; backward is all three kernels\n",
                 device->info().name.c_str(), device->info().sms);
    Table table({{"case", -34},
                 {"pass", -7},
                 {"tokens", 8},
                 {"Mpairs", 8},
                 {"density", 7},
                 {"tiles", 9},
                 {"partial", 7},
                 {"in tiles", 8},
                 {"us", 10},
                 {"TFLOP/s", 8},
                 {"best", 8},
                 {"plan us", 8},
                 {"error", 9}},
                notes);
    PackedBench bench(engine, device, options);
    std::size_t failed = 0;
    std::map<std::string, std::pair<double, int>> means;  // of logarithms, by pass
    for (const PackedItem& item : items) {
        const Pack pack = Pack::from_segments(item.spec.segments);
        PackedValues values(pack, item.variant, item.spec.seed);
        PackedOnDevice there(device, values);
        // FLOPs stay those of the trees: a plan for arrays knows no more than the causal bound.
        const Pack planned = packed_trees(item, options.arrays);
        std::optional<PackedArraysOnDevice> arrays;
        if (options.arrays) arrays.emplace(device, item, there);
        const double share = static_cast<double>(pack.visible_pairs()) / static_cast<double>(planned.visible_pairs());
        const auto report = [&](const char* pass, Timed timed) {
            timed.flops *= share;
            const double us = median(timed.us), best = *std::min_element(timed.us.begin(), timed.us.end());
            const auto tokens = static_cast<double>(pack.rows()), pairs = static_cast<double>(pack.visible_pairs());
            failed += timed.verdict && !timed.verdict->passes;
            means[pass].first += std::log(timed.flops / us * 1e-6), ++means[pass].second;
            nlohmann::json line = to_json(item, pack);
            line["pass"] = pass, line["us"] = us, line["best_us"] = best, line["samples"] = timed.us.size();
            line["tflops"] = timed.flops / us * 1e-6, line["plan_us"] = timed.plan_us, line["flops"] = timed.flops;
            line["tiles"] = timed.tiles, line["partial_tiles"] = timed.partial_tiles,
            line["density"] = pairs / (tokens * (tokens + 1) / 2);
            if (timed.verdict) line.update(timed.verdict->figures), line["ok"] = timed.verdict->passes;
            json.write(line);
            if (json.to_stdout()) return;
            table.row({item.title(), pass, text("%.0f", tokens), text("%.1f", pairs * 1e-6),
                       text("%.2f", pairs / (tokens * (tokens + 1) / 2)), text("%lld", static_cast<long long>(timed.tiles)),
                       text("%lld", static_cast<long long>(timed.partial_tiles)),
                       text("%.2f", pairs / static_cast<double>(timed.pairs_in_tiles)), micros_text(us),
                       text("%.0f", timed.flops / us * 1e-6), text("%.0f", timed.flops / best * 1e-6), text("%.0f", timed.plan_us),
                       timed.verdict ? text("%.2e%s", timed.verdict->error, timed.verdict->passes ? "" : " !") : ""});
        };
        report("fwd", bench.forward(item, planned, values, there));
        const PackedConfig config = packed_config(options.backward_config);
        for (const bool deterministic : {false, true}) {
            const char* pass = deterministic ? "bwd-det" : "bwd";
            if (names(options.passes, pass))
                report(pass, bench.backward(item, planned, values, there, {.deterministic = deterministic, .config = config}));
        }
    }
    for (const auto& [pass, mean] : means)
        std::fprintf(notes, "%s: %d cases, geometric mean %.0f TFLOP/s\n", pass.c_str(), mean.second,
                     std::exp(mean.first / mean.second));
    if (failed) std::fprintf(notes, "%zu FAILED\n", failed);
    return failed ? kCheckFailed : kOk;
}

}  // namespace sapwood::tool
