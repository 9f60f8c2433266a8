// SPDX-License-Identifier: Apache-2.0
#include "execute.h"

namespace sapwood::tool {

double floor_bytes(const support::DecodeCase& which) {
    const support::Variant& v = which.variant;
    const double dims = v.head_dim + (which.head_dim_v ? which.head_dim_v : v.head_dim);
    const auto q_bytes = static_cast<double>(dtype_bytes(v.dtype)),
               kv_bytes = static_cast<double>(kv_dtype_bytes(v.kv_dtype, v.dtype));
    return dims * (kv_bytes * static_cast<double>(which.counts.used_tokens) * v.kv_heads +
                   q_bytes * static_cast<double>(which.counts.requests) * v.q_heads);
}

double flops(const support::DecodeCase& which) {
    const support::Variant& v = which.variant;
    const double dims = v.head_dim + (which.head_dim_v ? which.head_dim_v : v.head_dim);
    return 2 * dims * v.q_heads * static_cast<double>(which.counts.path_tokens);
}

std::vector<std::int32_t> requests_to_check(const support::DecodeCase& which, std::int32_t wanted) {
    const std::int32_t all = which.forest.request_capacity();
    if (wanted <= 0) {
        const double per_request = flops(which) / std::max(1, all);
        wanted = static_cast<std::int32_t>(std::clamp(4e9 / std::max(per_request, 1.0), 24.0, 1e9));
    }
    return support::spread(all, wanted);
}

DecodePlan plan_case(Engine& engine, const support::DecodeCase& which, const DecodeConfig& config) {
    if (!which.static_trees.empty()) return engine.plan_static_tree(which.problem(), which.static_trees, which.sequences, config);
    return engine.plan_decode(which.problem(), which.forest, config);
}

Execution execute(Engine& engine, const DevicePtr& device, const support::DecodeCase& which, const ExecuteOptions& options) {
    Execution result;
    options.stage("planning");
    double begin = now_ms();
    DecodePlan plan = plan_case(engine, which, options.config);
    result.plan_us = (now_ms() - begin) * 1e3;
    result.plan = plan.info();
    result.plan_text = plan.to_string();
    options.stage("compiling");
    begin = now_ms();
    result.kernel = engine.prepare(plan);
    result.prepare_ms = now_ms() - begin;
    if (!engine.has_device()) return result;

    options.stage("making inputs");
    support::Inputs inputs = support::make_inputs(which);
    options.stage("running");
    if (device) {
        DeviceCase tensors(device, which, inputs);
        GpuStream stream(device);
        engine.launch(plan, tensors.tensors(), stream.get());
        result.run_us = stream.time(1, nullptr, [&](int) { engine.launch(plan, tensors.tensors(), stream.get()); })[0];
        tensors.poison();  // the checked call is one that finds the counters as the calls before it left them
        engine.launch(plan, tensors.tensors(), stream.get());
        device->synchronize(stream.get());
        tensors.download(inputs);
    } else {
        begin = now_ms();
        engine.launch(plan, inputs.tensors);
        result.run_us = (now_ms() - begin) * 1e3;
    }
    result.ran = true;
    if (options.check) {
        options.stage("comparing with the oracle");
        const auto subset = requests_to_check(which, options.check_requests);
        result.comparison = support::compare(which.problem(), inputs.tensors,
                                             oracle::decode(which.forest, which.problem(), inputs.tensors, subset));
    }
    return result;
}

}  // namespace sapwood::tool
