// SPDX-License-Identifier: Apache-2.0
#include "packed_case.h"
#include "terminal.h"

namespace sapwood::tool {
namespace {

struct BackwardRun {
    double us = 0;
    std::optional<PackedGradientsChecked> checked;
};

/// On the forward pass' results.
BackwardRun run_backward(Engine& engine, const DevicePtr& device, const PackedItem& item, const Pack& pack,
                         const PackedValues& values, const PackedOnDevice* there, const PackedRunOptions& options) {
    const PackedProblem problem = item.variant.problem();
    PackedBackwardPlan plan = engine.plan_packed_backward(problem, pack, {.config = packed_config(options.backward_config)});
    PackedGradientValues got = {support::HalfBuffer(values.q.size()), support::HalfBuffer(values.k.size()),
                                support::HalfBuffer(values.v.size()), values.q};
    BackwardRun run;
    engine.prepare(plan);
    if (device) {
        const DeviceBuffer dq(device, got.dq.bytes()), dk(device, got.dk.bytes()), dv(device, got.dv.bytes());
        const PackedGradients call = packed_gradients(there->tensors, dq.as(), dk.as(), dv.as());
        GpuStream stream(device);
        engine.launch(plan, call, stream.get());  // as in the forward pass, the second one counts
        run.us = stream.time(1, nullptr, [&](int) { engine.launch(plan, call, stream.get()); })[0];
        device->synchronize(stream.get());
        dq.download(got.dq.data(), got.dq.bytes());
        dk.download(got.dk.data(), got.dk.bytes());
        dv.download(got.dv.data(), got.dv.bytes());
    } else {
        const double begin = now_ms();
        engine.launch(plan, packed_gradients(values.tensors, got.dq.data(), got.dk.data(), got.dv.data()));
        run.us = (now_ms() - begin) * 1e3;
    }
    if (options.check) run.checked = check_packed_gradients(item, pack, values, got, options.check_rows);
    return run;
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
                 {"bwd run", 10},
                 {"bwd error", 9},
                 {"check", -8}});
    std::size_t failed = 0, skipped = 0;
    for (const PackedItem& item : items) {
        const Pack pack = Pack::from_segments(item.spec.segments);
        PackedPlan plan = engine.plan_packed(item.variant.problem(), pack, packed_config(options.config));
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
        line["kernel"] = to_json(kernel);
        std::optional<PackedChecked> checked;
        std::optional<BackwardRun> backward;
        double run_us = 0;
        if (engine.has_device()) {
            PackedValues values(pack, item.variant, item.spec.seed);
            std::optional<PackedOnDevice> on_device;
            const double begin = now_ms();
            if (device) {
                const PackedOnDevice& there = on_device.emplace(device, values);
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
            if (options.check) checked = check_packed(item, pack, values, options.check_rows);
            if (options.passes.find("bwd") != std::string::npos)
                backward = run_backward(engine, device, item, pack, values, on_device ? &*on_device : nullptr, options);
        }
        const DType dtype = item.variant.dtype;
        const bool bad =
            (checked && !checked->passes(dtype)) || (backward && backward->checked && !backward->checked->passes(dtype));
        failed += bad;
        line["run_us"] = run_us;
        if (checked)
            line["error"] = checked->out_error, line["worst_row"] = checked->worst_row, line["lse_error"] = checked->lse_error,
            line["ok"] = !bad;
        if (backward) line["backward_us"] = backward->us;
        if (backward && backward->checked) line["backward_error"] = backward->checked->worst();
        json.write(line);
        if (json.to_stdout()) continue;
        table.row({item.title(), text("%lld", static_cast<long long>(info.rows)), text("%lld", static_cast<long long>(info.tiles)),
                   text("%lld", static_cast<long long>(info.partial_tiles)), kernel.origin, text("%.1f", kernel.prepare_ms),
                   text("%d", kernel.registers), run_us > 0 ? micros_text(run_us) : "",
                   checked ? text("%.2e", checked->out_error) : "", checked ? text("%.1e", checked->lse_error) : "",
                   backward ? micros_text(backward->us) : "",
                   backward && backward->checked ? text("%.2e", backward->checked->worst()) : "",
                   !checked ? ""
                   : bad    ? "FAILED"
                            : "ok"});
    }
    std::fprintf(json.to_stdout() ? stderr : stdout, "%zu cases, %zu failed, %zu skipped\n", items.size(), failed, skipped);
    return failed ? kCheckFailed : kOk;
}

}  // namespace sapwood::tool
