// SPDX-License-Identifier: Apache-2.0
// The cost model against what an exhaustive search measured on an H100 (tests/measured): how good the choices are that are made
// without measuring. The times are of the kernels of one day; where other kernels win, measure again (tests/measured/listed.jq).
#include <doctest/doctest.h>

#include <cmath>
#include <fstream>
#include <limits>
#include <nlohmann/json.hpp>

#include "support/offline_limits.h"
#include "support/workload.h"
#include "tune/candidates.h"
#include "tune/config_fields.h"
#include "tune/prune.h"

using namespace sapwood;
using nlohmann::json;

namespace {

const std::string kTests = SAPWOOD_SOURCE_DIR "/tests/";

constexpr double kFar = std::numeric_limits<double>::infinity();

/// What was measured of the configuration's kernel, by plan; null if nothing near the best.
const json* kernel_in(const json& times, const DecodeConfig& config) {
    const auto kernel = times.find((config.mainloop == Mainloop::wgmma ? "wgmma," : "mma,") + std::to_string(config.warps) + "," +
                                   std::to_string(config.producers) + "," + std::to_string(config.block_kv) + "," +
                                   std::to_string(config.stages) + "," + std::to_string(config.blocks));
    return kernel == times.end() ? nullptr : &*kernel;
}

double measured(const json& times, const DecodeConfig& config) {
    const json* kernel = kernel_in(times, config);
    return kernel == nullptr ? kFar : kernel->value(tune::plan_text(config), kFar);
}

struct Quality {
    int within_3 = 0, within_10 = 0, cases = 0;
    std::string far;
    void add(const std::string& title, const json& times, const DecodeConfig& choice) {
        double best = kFar;
        for (const json& kernel : times)
            for (const json& us : kernel)
                if (!kernel.contains("spills")) best = std::min(best, us.get<double>());
        const double ratio = measured(times, choice) / best;
        ++cases, within_3 += ratio <= 1.03, within_10 += ratio <= 1.1;
        if (ratio > 1.1) far += title + ": " + tune::config_text(choice) + ", " + std::to_string(ratio) + " of the best\n";
    }
};

}  // namespace

TEST_CASE("tune cost: without measuring within 10 % of the best in 80 % of the FastTree cases") {
    const json fixture = json::parse(std::ifstream(kTests + "measured/fasttree_h100.json"));
    const std::string target = fixture["target"];
    const cuda::DeviceInfo info = cuda::offline_device(target);
    const tune::DeviceFacts device = {.limits = limits_of(info, target), .name = info.name};
    TuneOptions all;
    all.exhaustive = true;
    Quality model, by_default;
    for (const support::CaseSpec& spec : support::load_workload(kTests + "workloads/fasttree.json")) {
        for (const support::Variant& variant : spec.variants()) {
            if (variant.layout != support::Layout::random) continue;
            const support::DecodeCase built = support::build_case(spec, variant);
            const ForestOrder order = order_of(built.forest);
            tune::CandidateSet set = find_candidates(complete(built.problem(), order), built.forest, order, device, all, {});
            const json& times = fixture["cases"][built.title()];
            REQUIRE(!times.empty());
            // As the compiler's report has it.
            for (TuneCandidate& candidate : set.all)
                if (const json* kernel = kernel_in(times, candidate.config); kernel != nullptr && kernel->contains("spills"))
                    tune::drop(candidate, "pruned:spill", "");
            model.add(built.title(), times, set.all[tune::least_cost(set.all)].config);
            by_default.add(built.title(), times, set.all.front().config);
            // No plan is faster than its bytes.
            for (const std::size_t i : set.alive()) CHECK(set.all[i].cost_us > set.floor_us);
        }
    }
    CAPTURE(model.far);
    CAPTURE(by_default.far);
    CAPTURE(model.within_3);
    CAPTURE(by_default.within_3);
    CHECK(model.cases == 45);
    CHECK(model.within_10 >= 40);
    CHECK(model.within_3 >= 37);
    CHECK(by_default.within_10 >= 40);
    CHECK(by_default.within_3 >= 34);
}
