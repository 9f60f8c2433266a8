// SPDX-License-Identifier: Apache-2.0
// sapwood bench: times cases of a workload file on a GPU, three ways, against the floor that no kernel can go below.
#include <cmath>
#include <map>

#include "execute.h"
#include "packed.h"
#include "support/packed_workload.h"
#include "terminal.h"

namespace sapwood::tool {
namespace {

constexpr std::size_t kFlushBytes = 256'000'000;  // written between cold runs: five times the L2 of an H100
constexpr double kRotateLimit = 400e6;            // one copy of this size already flushes the L2 by itself
constexpr double kFlopsPerUs = 600e6;

struct BenchOptions {
    Selection cases;
    JsonLines json;
    std::string target = "cuda", config, modes = "cold,warm,rotate", exact_limit = "8GB", cache, passes = "fwd,bwd",
                backward_config;
    double bandwidth = 3.0, budget = 2.0;
    bool check = false, no_overlap = false, arrays = false, hnd = false;
    std::int32_t check_requests = 24;
};

struct Times {
    std::vector<double> cold, warm, rotate;  // microseconds a call
    double plan_us = 0, update_us = 0;
};

/// One decode step: every request a token longer. One verify step: a token accepted in every sequence, and the next draft.
void step(Forest& forest) {
    bool drafts = false;
    for (std::int32_t node = 0; node < forest.node_capacity(); ++node) {
        const DraftMask* mask = forest.draft_mask(node);
        if (mask == nullptr) continue;
        drafts = true;
        const Node draft = forest.node(node);
        if (draft.parent >= 0) forest.append_tokens(draft.parent);
        forest.replace_draft(node, draft.kv_begin + 1, DraftMask(*mask));
    }
    if (!drafts) forest.append_token_to_each_request();
}

class Bench {
public:
    Bench(Engine& engine, DevicePtr device, const BenchOptions& options)
        : engine_(engine), device_(device), options_(options), stream_(device), flush_(device, kFlushBytes) {}

    bool wants(const char* mode) const { return options_.modes.find(mode) != std::string::npos; }

    void time_planning(const support::DecodeCase& which, Times& times) {
        std::vector<double> full, update;
        const DecodeConfig config = parse_config(options_.config);
        std::optional<DecodePlan> plan;
        for (double begin = now_ms(); full.size() < 5 || (full.size() < 50 && now_ms() - begin < 100);) {
            const double start = now_ms();
            plan.emplace(plan_case(engine_, which, config));
            full.push_back((now_ms() - start) * 1e3);
        }
        times.plan_us = median(full);
        if (!which.static_trees.empty()) return;  // made once
        Forest forest = which.forest;
        try {
            for (int i = 0; i < 21; ++i) {
                step(forest);
                const double start = now_ms();
                plan->update(forest);
                update.push_back((now_ms() - start) * 1e3);
            }
        } catch (const Error& error) {
            if (error.code() != ErrorCode::kCapacityExceeded) throw;
        }
        times.update_us = median(update);
    }

    void time_calls(DecodePlan& plan, const support::DecodeCase& which, DeviceCase& tensors, const support::Inputs* inputs,
                    Times& times) {
        const auto launch = [&](const DecodeTensors& t) { engine_.launch(plan, t, stream_.get()); };
        engine_.upload(plan, stream_.get());
        for (int i = 0; i < 3; ++i) launch(tensors.tensors());
        const double once = stream_.time(1, nullptr, [&](int) { launch(tensors.tensors()); })[0];
        const int modes = wants("cold") + wants("warm") + wants("rotate");
        const double share = options_.budget * 1e6 / std::max(1, modes);
        const auto samples = [&](double us) { return static_cast<int>(std::clamp(share / us, 7.0, 60.0)); };

        if (wants("cold"))
            times.cold = stream_.time(
                samples(once + 120),
                [&](int i) { device_->fill(flush_.address(), static_cast<std::uint8_t>(i), kFlushBytes, stream_.get()); },
                [&](int) { launch(tensors.tensors()); });
        if (wants("warm"))
            times.warm =
                time_graphs({std::vector<DecodeTensors>(kGraphCalls, tensors.tensors())}, samples(once * kGraphCalls), launch);

        const double copy = static_cast<double>(which.kv_bytes());
        if (!wants("rotate") || copy > kRotateLimit || copy == 0 || !inputs) return;
        // Small trees need more copies than one graph has calls: several graphs take turns.
        const int copies = static_cast<int>(std::clamp(std::ceil(kRotateBytes / copy), 2.0, 400.0));
        std::vector<DeviceKv> kv;
        for (int i = 0; i < copies; ++i)
            kv.push_back({DeviceBuffer(device_, inputs->k.data(), inputs->k.bytes()),
                          DeviceBuffer(device_, inputs->v.data(), inputs->v.bytes())});
        std::vector<std::vector<DecodeTensors>> graphs(static_cast<std::size_t>((copies + kGraphCalls - 1) / kGraphCalls));
        int next = 0;
        for (auto& graph : graphs)
            for (int i = 0; i < kGraphCalls; ++i, ++next)
                graph.push_back(tensors.tensors_with(kv[static_cast<std::size_t>(next % copies)]));
        times.rotate = time_graphs(graphs, samples(once * kGraphCalls), launch);
    }

private:
    template <class Launch>
    std::vector<double> time_graphs(const std::vector<std::vector<DecodeTensors>>& calls, int samples, const Launch& launch) {
        std::vector<void*> graphs;
        for (const auto& graph : calls)
            graphs.push_back(stream_.capture([&](void*) {
                for (const DecodeTensors& tensors : graph) launch(tensors);
            }));
        const auto replay = [&](int i) {
            device_->launch_graph(graphs[static_cast<std::size_t>(i) % graphs.size()], stream_.get());
        };
        for (int i = 0; i < static_cast<int>(graphs.size()) + 2; ++i) replay(i);
        std::vector<double> times = stream_.time(samples, nullptr, replay);
        for (double& time : times) time /= kGraphCalls;
        stream_.destroy_graphs();
        return times;
    }

    Engine& engine_;
    DevicePtr device_;
    const BenchOptions& options_;
    GpuStream stream_;
    DeviceBuffer flush_;
};

nlohmann::json quartiles(std::vector<double> times) {
    if (times.empty()) return nullptr;
    std::sort(times.begin(), times.end());
    const auto at = [&](double q) { return times[static_cast<std::size_t>(q * static_cast<double>(times.size() - 1))]; };
    return {{"us", median(times)}, {"q1", at(0.25)}, {"q3", at(0.75)}, {"min", times.front()}, {"samples", times.size()}};
}

/// Geometric means of time / bound, by head shape and over all, and how many cases meet the two limits.
class Summary {
public:
    void add(const std::string& group, double us, double bound) {
        for (const std::string& name : {group, std::string("all")}) {
            Group& g = groups_[name];
            g.log_sum += std::log(us / bound);
            ++g.cases;
            g.within_85 += us <= bound / 0.85 + 4;
            g.within_70 += us <= bound / 0.70 + 5;
        }
    }
    void print(std::FILE* to) const {
        for (const auto& [name, g] : groups_)
            std::fprintf(to,
                         "%-6s %3d cases: graph time / bound %.2f (geometric mean); within bound/0.85 + 4 us: %d, within "
                         "bound/0.70 + 5 us: %d\n",
                         name.c_str(), g.cases, std::exp(g.log_sum / g.cases), g.within_85, g.within_70);
    }

private:
    struct Group {
        double log_sum = 0;
        int cases = 0, within_85 = 0, within_70 = 0;
    };
    std::map<std::string, Group> groups_;
};

int bench(BenchOptions& options) {
    if (support::is_packed_workload(options.cases.file))
        return bench_packed(options.cases, options.json,
                            {.target = options.target,
                             .cache = options.cache,
                             .config = options.config,
                             .backward_config = options.backward_config,
                             .check = options.check,
                             .check_rows = options.check_requests,
                             .budget = options.budget,
                             .passes = options.passes,
                             .arrays = options.arrays});
    const auto items = options.cases.items();
    if (cuda::device_count() == 0)
        throw Stop{kNotPossible, "bench needs a GPU: " + cuda::driver_problem() + ". `sapwood run` runs on the host target"};
    Engine engine({.target = options.target, .cache_dir = options.cache, .overlap_launches = !options.no_overlap});
    const DevicePtr device = device_of(options.target, engine.has_device());
    if (!device) throw Stop{kNotPossible, "bench needs a GPU target, not " + options.target};
    std::FILE* notes = options.json.to_stdout() ? stderr : stdout;
    const cuda::DeviceInfo& gpu = device->info();
    std::fprintf(
        notes, "%s, %d SMs, driver for CUDA %d.%d; bound = max(bytes at %.2f TB/s, FLOPs at 600 TFLOP/s); microseconds, medians\n",
        gpu.name.c_str(), gpu.sms, gpu.driver_version / 1000, gpu.driver_version % 1000 / 10, options.bandwidth);
    Table table({{"case", -40},
                 {"bytes", 9},
                 {"floor", 7},
                 {"bound", 7},
                 {"cold", 8},
                 {"warm", 8},
                 {"rotate", 8},
                 {"bound/cold", 10},
                 {"bound/graph", 11},
                 {"plan", 7},
                 {"update", 7},
                 {"error", 8}},
                notes);
    Bench bench(engine, device, options);
    Summary summary;
    Progress progress("bench", items.size());
    std::size_t failed = 0, skipped = 0, done = 0;
    const double exact_limit = static_cast<double>(parse_bytes(options.exact_limit));
    for (const auto& [spec, variant] : items) {
        const support::DecodeCase which = support::build_case(spec, variant, options.cases.build_options());
        progress.step(done++, which.title());
        const double kv_bytes = static_cast<double>(which.kv_bytes());
        if (kv_bytes + 3 * static_cast<double>(kFlushBytes) > 0.92 * static_cast<double>(gpu.memory_bytes)) {
            ++skipped;
            options.json.write({{"case", spec.name}, {"skipped", "does not fit the device"}, {"kv_bytes", kv_bytes}});
            continue;
        }
        Times times;
        bench.time_planning(which, times);
        DecodePlan plan = plan_case(engine, which, parse_config(options.config));
        const KernelReport kernel = engine.prepare(plan);
        std::optional<support::Inputs> inputs;
        if (kv_bytes <= exact_limit) inputs = support::make_inputs(which, {.hnd = options.hnd});
        DeviceCase tensors = inputs ? DeviceCase(device, which, *inputs) : DeviceCase(device, which, {.hnd = options.hnd});
        bench.time_calls(plan, which, tensors, inputs ? &*inputs : nullptr, times);

        std::optional<support::Comparison> compared;
        if (options.check && inputs) {  // after the timing: on the tensors, counters and plan that were timed
            tensors.poison();
            engine.launch(plan, tensors.tensors());
            device->synchronize(nullptr);
            tensors.download(*inputs);
            const auto subset = support::spread(which.forest.request_capacity(), options.check_requests);
            compared = support::compare(which.problem(), inputs->tensors,
                                        oracle::decode(which.forest, which.problem(), inputs->tensors, subset));
        }
        const bool bad = compared && !compared->passes(variant.dtype);
        failed += bad;

        const double floor = floor_bytes(which) / options.bandwidth / 1e6, bound = std::max(floor, flops(which) / kFlopsPerUs);
        const double graph = median(times.rotate.empty() ? times.warm : times.rotate), cold = median(times.cold);
        if (graph > 0 && bound > 0) summary.add(text("%d/%d", variant.q_heads, variant.kv_heads), graph, bound);
        nlohmann::json line = to_json(which);
        line["device"] = gpu.name, line["kernel"] = to_json(kernel), line["plan"] = to_json(plan.info());
        line["floor_bytes"] = floor_bytes(which), line["floor_us"] = floor, line["bound_us"] = bound;
        line["cold"] = quartiles(times.cold), line["warm"] = quartiles(times.warm), line["rotate"] = quartiles(times.rotate);
        line["graph_us"] = graph, line["plan_us"] = times.plan_us, line["update_us"] = times.update_us,
        line["exact_values"] = inputs.has_value();
        if (compared)
            line["error"] = compared->out_error, line["lse_error"] = compared->lse_error, line["nan"] = compared->nan_count,
            line["ok"] = !bad;
        options.json.write(line);
        if (options.json.to_stdout()) continue;
        progress.clear();
        const auto us = [](double value) { return value > 0 ? text("%.2f", value) : std::string("-"); };
        const auto share = [&](double value) { return value > 0 ? text("%.3f", bound / value) : std::string("-"); };
        table.row({which.title(), bytes_text(floor_bytes(which)), us(floor), us(bound), us(cold), us(median(times.warm)),
                   us(median(times.rotate)), share(cold), share(graph), text("%.0f", times.plan_us), text("%.1f", times.update_us),
                   !compared ? "-"
                   : bad     ? "FAILED"
                             : text("%.1e", compared->out_error)});
        if (bad) std::printf("  %s\n", compared->to_string().c_str());
    }
    progress.clear();
    summary.print(notes);
    std::fprintf(notes, "%zu cases, %zu failed, %zu skipped (do not fit the device)\n", items.size(), failed, skipped);
    return failed ? kCheckFailed : kOk;
}

}  // namespace

void add_bench(CLI::App& app, Action& action) {
    auto options = std::make_shared<BenchOptions>();
    CLI::App* sub =
        app.add_subcommand("bench", "time cases on a GPU: cold L2 by events, warm and rotating KV as CUDA graphs of 20 calls");
    options->cases.add_options(*sub);
    sub->add_option("--target", options->target, "cuda or cuda:N")->capture_default_str();
    sub->add_option("--modes", options->modes, "which of cold,warm,rotate")->capture_default_str();
    sub->add_option("--backward-config", options->backward_config, "the same for the backward pass of training workloads");
    sub->add_option("--passes", options->passes, "training workloads: of fwd,bwd,bwd-det (deterministic); fwd always")
        ->capture_default_str();
    sub->add_flag("--arrays", options->arrays, "training workloads: trees as start_q and end_k, which the device classifies");
    sub->add_option("--bandwidth", options->bandwidth, "TB/s of the floor")->capture_default_str();
    sub->add_option("--budget", options->budget, "seconds of GPU time a case, all modes together")->capture_default_str();
    sub->add_flag("--check", options->check, "compare a subset of the requests with the fp64 oracle after timing");
    sub->add_flag("--hnd", options->hnd, "Q, K, V and out with heads outermost, [heads, tokens, dim]; else tokens outermost");
    sub->add_flag("--no-overlap", options->no_overlap, "no programmatic dependent launches: each call starts after the one before");
    sub->add_option("--check-requests", options->check_requests, "how many requests to compare")->capture_default_str();
    sub->add_option("--config", options->config,
                    "tile sizes, as warps=4,block_kv=64,stages=3,blocks=2; of training workloads heads=4 too");
    sub->add_option("--exact-limit", options->exact_limit,
                    "above this KV size: a repeated random block as KV, no check, no rotation")
        ->capture_default_str();
    sub->add_option("--cache-dir", options->cache, "kernel cache");
    options->json.add_option(*sub);
    sub->callback([options, &action] { action = [options] { return bench(*options); }; });
}

}  // namespace sapwood::tool
