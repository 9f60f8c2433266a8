// SPDX-License-Identifier: Apache-2.0
#include "packed.h"

#include <fnmatch.h>
#include <cmath>
#include <map>

#include "gpu.h"
#include "support/compare.h"
#include "support/half.h"
#include "support/packed_workload.h"
#include "terminal.h"

namespace sapwood::tool {

std::vector<PackedItem> packed_items(const Selection& cases) {
    std::vector<PackedItem> chosen;
    const auto specs = support::load_packed_workload(cases.file);
    const bool exact = std::any_of(specs.begin(), specs.end(), [&](const support::PackedSpec& s) { return s.name == cases.name; });
    for (const support::PackedSpec& spec : specs) {
        const bool glob = cases.name.find_first_of("*?[") != std::string::npos;
        const bool named = cases.name.empty() || (exact  ? spec.name == cases.name
                                                  : glob ? fnmatch(cases.name.c_str(), spec.name.c_str(), 0) == 0
                                                         : spec.name.starts_with(cases.name));
        if (!named || spec.block_causal || (!cases.set.empty() && spec.set != cases.set)) continue;
        for (const support::PackedVariant& v : support::variants(spec)) {
            if (!cases.heads.empty() && cases.heads != text("%d/%d", v.q_heads, v.kv_heads)) continue;
            if (cases.head_dim > 0 && cases.head_dim != v.head_dim) continue;
            if (!cases.dtype.empty() && (cases.dtype == "fp16") != (v.dtype == DType::fp16)) continue;
            if (cases.limit == 0 || chosen.size() < cases.limit) chosen.push_back({spec, v});
        }
    }
    if (chosen.empty()) throw Stop{kUsage, "no case of " + cases.file + " fits the selection"};
    return chosen;
}

namespace {

using support::PackedSpec;
using support::PackedVariant;

using Item = PackedItem;

PackedConfig config_of(const std::string& given) {
    const DecodeConfig parsed = parse_config(given);
    return {.mainloop = parsed.mainloop,
            .warps = parsed.warps,
            .producers = parsed.producers,
            .block_kv = parsed.block_kv,
            .stages = parsed.stages,
            .blocks = parsed.blocks};
}

/// Tensors of a case, in host memory.
struct Values {
    support::HalfBuffer q, k, v, out;
    std::vector<float> lse;
    PackedTensors tensors;

    Values(const Pack& pack, const PackedVariant& shape, std::uint64_t seed)
        : q(pack.rows() * shape.q_heads * shape.head_dim),
          k(pack.keys() * shape.kv_heads * shape.head_dim),
          v(k.size()),
          out(q.size()),
          lse(static_cast<std::size_t>(pack.rows() * shape.q_heads)) {
        support::fill_values(shape.dtype, seed, support::Stream::q, 0, q.span());
        support::fill_values(shape.dtype, seed, support::Stream::k, 0, k.span());
        support::fill_values(shape.dtype, seed, support::Stream::v, 0, v.span());
        tensors = {.q = q.data(), .k = k.data(), .v = v.data(), .out = out.data(), .lse = lse.data()};
    }
};

class OnDevice {
public:
    OnDevice(const DevicePtr& device, Values& values)
        : values_(values),
          q_(device, values.q.data(), values.q.bytes()),
          k_(device, values.k.data(), values.k.bytes()),
          v_(device, values.v.data(), values.v.bytes()),
          out_(device, values.out.bytes()),
          lse_(device, values.lse.size() * 4) {
        tensors = {.q = q_.as(), .k = k_.as(), .v = v_.as(), .out = out_.as(), .lse = lse_.as<float>()};
        device->fill(out_.address(), 0xff, out_.bytes(), nullptr);
        device->fill(lse_.address(), 0xff, lse_.bytes(), nullptr);
        device->synchronize(nullptr);
    }
    void download() const {
        out_.download(values_.out.data(), values_.out.bytes());
        lse_.download(values_.lse.data(), values_.lse.size() * 4);
    }
    PackedTensors tensors;

private:
    Values& values_;
    DeviceBuffer q_, k_, v_, out_, lse_;
};

struct Checked {
    double out_error = 0, worst_row = 0, lse_error = 0;
    bool passes(DType dtype) const {
        return out_error <= support::tolerance(dtype) && worst_row <= 4 * support::tolerance(dtype) && lse_error <= 1e-3;
    }
};

/// Evenly spread rows, all heads.
Checked check(const Item& item, const Pack& pack, const Values& values, std::int32_t rows) {
    const PackedProblem problem = item.variant.problem();
    std::vector<std::int64_t> chosen;
    for (const std::int32_t row : support::spread(static_cast<std::int32_t>(pack.rows()), rows > 0 ? rows : 64))
        chosen.push_back(row);
    const auto want = oracle::packed_forward(problem, values.tensors, pack.rows(), pack.keys(),
                                             oracle::sees_segments(item.spec.segments), chosen);
    const auto dim = static_cast<std::size_t>(problem.head_dim), heads = static_cast<std::size_t>(problem.q_heads);
    std::vector<double> got(want.out.size()), got_lse(want.lse.size());
    Checked checked;
    for (std::size_t i = 0; i < chosen.size(); ++i) {
        const auto row = static_cast<std::size_t>(chosen[i]);
        for (std::size_t e = 0; e < heads * dim; ++e)
            got[i * heads * dim + e] = static_cast<double>(support::widen(problem.dtype, values.out.data()[row * heads * dim + e]));
        for (std::size_t h = 0; h < heads; ++h) {
            got_lse[h * chosen.size() + i] = static_cast<double>(values.lse[h * static_cast<std::size_t>(pack.rows()) + row]);
            const std::size_t from = (i * heads + h) * dim;
            checked.worst_row = std::max(checked.worst_row, support::relative_error(std::span(got).subspan(from, dim),
                                                                                    std::span(want.out).subspan(from, dim)));
        }
    }
    checked.out_error = support::relative_error(got, want.out);
    checked.lse_error = support::max_abs_error(got_lse, want.lse);
    return checked;
}

nlohmann::json to_json(const Item& item, const Pack& pack) {
    return {{"case", item.spec.name},
            {"dtype", dtype_name(item.variant.dtype)},
            {"head_dim", item.variant.head_dim},
            {"q_heads", item.variant.q_heads},
            {"kv_heads", item.variant.kv_heads},
            {"tokens", pack.rows()},
            {"visible_pairs", pack.visible_pairs()}};
}

}  // namespace

int run_packed(const Selection& cases, JsonLines& json, const PackedRunOptions& options) {
    const auto items = packed_items(cases);
    Engine engine({.target = options.target, .cache_dir = options.cache});
    const DevicePtr device = device_of(options.target, engine.has_device());
    if (!json.to_stdout()) std::printf("target %s\n", engine.target().c_str());
    Table table({{"case", -34},
                 {"tokens", 8},
                 {"tiles", 9},
                 {"partial", 8},
                 {"kernel", 9},
                 {"ms", 8},
                 {"registers", 9},
                 {"run", 10},
                 {"error", 9},
                 {"lse", 9},
                 {"check", -8}});
    std::size_t failed = 0, skipped = 0;
    for (const Item& item : items) {
        const Pack pack = Pack::from_segments(item.spec.segments);
        PackedPlan plan = engine.plan_packed(item.variant.problem(), pack, config_of(options.config));
        const PackedPlanInfo info = plan.info();
        nlohmann::json line = to_json(item, pack);
        line["tiles"] = info.tiles, line["partial_tiles"] = info.partial_tiles, line["flops"] = info.flops;
        if (engine.has_device() && !device && options.host_work > 0 && info.flops > options.host_work) {
            ++skipped;
            line["skipped"] = "over --host-work";
            json.write(line);
            continue;
        }
        const KernelReport kernel = engine.prepare(plan);
        line["kernel"] = tool::to_json(kernel);
        std::optional<Checked> checked;
        double run_us = 0;
        if (engine.has_device()) {
            Values values(pack, item.variant, item.spec.seed);
            const double begin = now_ms();
            if (device) {
                OnDevice there(device, values);
                GpuStream stream(device);
                engine.launch(plan, there.tensors,
                              stream.get());  // so that the checked one finds the counters as this one left them
                run_us = stream.time(1, nullptr, [&](int) { engine.launch(plan, there.tensors, stream.get()); })[0];
                device->synchronize(stream.get());
                there.download();
            } else {
                engine.launch(plan, values.tensors);
                run_us = (now_ms() - begin) * 1e3;
            }
            if (options.check) checked = check(item, pack, values, options.check_rows);
        }
        const bool bad = checked && !checked->passes(item.variant.dtype);
        failed += bad;
        line["run_us"] = run_us;
        if (checked)
            line["error"] = checked->out_error, line["worst_row"] = checked->worst_row, line["lse_error"] = checked->lse_error,
            line["ok"] = !bad;
        json.write(line);
        if (json.to_stdout()) continue;
        table.row({item.title(), text("%lld", static_cast<long long>(info.rows)), text("%lld", static_cast<long long>(info.tiles)),
                   text("%lld", static_cast<long long>(info.partial_tiles)), kernel.origin, text("%.1f", kernel.prepare_ms),
                   text("%d", kernel.registers), run_us > 0 ? micros_text(run_us) : "",
                   checked ? text("%.2e", checked->out_error) : "", checked ? text("%.1e", checked->lse_error) : "",
                   !checked ? ""
                   : bad    ? "FAILED"
                            : "ok"});
    }
    std::fprintf(json.to_stdout() ? stderr : stdout, "%zu cases, %zu failed, %zu skipped\n", items.size(), failed, skipped);
    return failed ? kCheckFailed : kOk;
}

namespace {

/// Time of a pass, and what it does, for a line of the table.
struct Timed {
    std::vector<double> us;
    double flops = 0, plan_us = 0;
    std::int64_t tiles = 0, partial_tiles = 0, pairs_in_tiles = 0;
    std::optional<Checked> checked;
};

class PackedBench {
public:
    PackedBench(Engine& engine, const DevicePtr& device, const PackedRunOptions& options)
        : engine_(engine), device_(device), options_(options), stream_(device) {}

    Timed forward(const Item& item, const Pack& pack, Values& values, OnDevice& there) {
        const PackedProblem problem = item.variant.problem();
        const PackedConfig config = config_of(options_.config);
        PackedPlan plan = engine_.plan_packed(problem, pack, config);
        const PackedPlanInfo info = plan.info();
        Timed timed = {.flops = info.flops, .tiles = info.tiles, .partial_tiles = info.partial_tiles};
        timed.pairs_in_tiles = info.tiles * info.config.warps * 16 * info.config.block_kv;
        timed.plan_us = planning([&] { engine_.plan_packed(problem, Pack::from_segments(item.spec.segments), config); });
        engine_.prepare(plan);
        timed.us = time([&](int) { engine_.launch(plan, there.tensors, stream_.get()); });
        if (!options_.check) return timed;
        device_->synchronize(stream_.get());
        there.download();
        timed.checked = check(item, pack, values, options_.check_rows);
        return timed;
    }

    /// On the forward pass' results; V stands in for the gradient of the output where it has as many heads, else Q does.
    Timed backward(const Item& item, const Pack& pack, const OnDevice& there) {
        const PackedProblem problem = item.variant.problem();
        PackedBackwardPlan plan = engine_.plan_packed_backward(problem, pack);
        const PackedBackwardInfo info = plan.info();
        Timed timed = {.flops = info.flops, .tiles = info.tiles, .partial_tiles = info.partial_tiles};
        timed.pairs_in_tiles = info.tiles * 64 * 128;
        timed.plan_us = planning([&] { engine_.plan_packed_backward(problem, Pack::from_segments(item.spec.segments)); });
        engine_.prepare(plan);
        const auto bytes = [](std::int64_t rows, std::int64_t heads, std::int64_t dim) {
            return static_cast<std::size_t>(rows * heads * dim) * 2;
        };
        const DeviceBuffer dq(device_, bytes(info.rows, problem.q_heads, problem.head_dim));
        const DeviceBuffer dk(device_, bytes(info.keys, problem.kv_heads, problem.head_dim));
        const DeviceBuffer dv(device_, bytes(info.keys, problem.kv_heads, problem.head_dim));
        const PackedTensors& t = there.tensors;
        const PackedGradients call = {
            .q = t.q, .k = t.k, .v = t.v, .out = t.out, .dout = t.q, .lse = t.lse, .dq = dq.as(), .dk = dk.as(), .dv = dv.as()};
        timed.us = time([&](int) { engine_.launch(plan, call, stream_.get()); });
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
                 {"pass", -4},
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
    for (const Item& item : items) {
        const Pack pack = Pack::from_segments(item.spec.segments);
        Values values(pack, item.variant, item.spec.seed);
        OnDevice there(device, values);
        const auto report = [&](const char* pass, const Timed& timed) {
            const double us = median(timed.us), best = *std::min_element(timed.us.begin(), timed.us.end());
            const auto tokens = static_cast<double>(pack.rows()), pairs = static_cast<double>(pack.visible_pairs());
            failed += timed.checked && !timed.checked->passes(item.variant.dtype);
            means[pass].first += std::log(timed.flops / us * 1e-6), ++means[pass].second;
            nlohmann::json line = to_json(item, pack);
            line["pass"] = pass, line["us"] = us, line["best_us"] = best, line["samples"] = timed.us.size();
            line["tflops"] = timed.flops / us * 1e-6, line["plan_us"] = timed.plan_us, line["flops"] = timed.flops;
            line["tiles"] = timed.tiles, line["partial_tiles"] = timed.partial_tiles,
            line["density"] = pairs / (tokens * (tokens + 1) / 2);
            if (timed.checked) line["error"] = timed.checked->out_error, line["lse_error"] = timed.checked->lse_error;
            json.write(line);
            if (json.to_stdout()) return;
            table.row({item.title(), pass, text("%.0f", tokens), text("%.1f", pairs * 1e-6),
                       text("%.2f", pairs / (tokens * (tokens + 1) / 2)), text("%lld", static_cast<long long>(timed.tiles)),
                       text("%lld", static_cast<long long>(timed.partial_tiles)),
                       text("%.2f", pairs / static_cast<double>(timed.pairs_in_tiles)), micros_text(us),
                       text("%.0f", timed.flops / us * 1e-6), text("%.0f", timed.flops / best * 1e-6), text("%.0f", timed.plan_us),
                       timed.checked
                           ? text("%.2e%s", timed.checked->out_error, timed.checked->passes(item.variant.dtype) ? "" : " !")
                           : ""});
        };
        report("fwd", bench.forward(item, pack, values, there));
        if (options.passes.find("bwd") != std::string::npos) report("bwd", bench.backward(item, pack, there));
    }
    for (const auto& [pass, mean] : means)
        std::fprintf(notes, "%s: %d cases, geometric mean %.0f TFLOP/s\n", pass.c_str(), mean.second,
                     std::exp(mean.first / mean.second));
    if (failed) std::fprintf(notes, "%zu FAILED\n", failed);
    return failed ? kCheckFailed : kOk;
}

}  // namespace sapwood::tool
