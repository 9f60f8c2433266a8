// SPDX-License-Identifier: Apache-2.0
// The cost model against what an exhaustive search measured on an H100, and a search of the model's own order on an H200
// (tests/measured): how good the choices are that are made without measuring. The times are of the kernels of one day; where other
// kernels win, measure again (tests/measured/listed.jq).
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

/// A fixture, and what its problems are planned for.
struct Measured {
    json fixture;
    tune::DeviceFacts device;
    explicit Measured(const std::string& file) : fixture(json::parse(std::ifstream(kTests + "measured/" + file))) {
        const std::string target = fixture["target"];
        const cuda::DeviceInfo info = cuda::offline_device(target);
        device = {.limits = limits_of(info, target), .name = info.name};
    }

    /// Calls back with title, times and all candidates of each case of `workload` that was measured.
    template <class Use>
    void each(const std::string& workload, Use&& use) const {
        TuneOptions all;
        all.exhaustive = true;
        for (const support::CaseSpec& spec : support::load_workload(kTests + "workloads/" + workload)) {
            for (const support::Variant& variant : spec.variants()) {
                const std::string title = spec.name + " " + variant.to_string();
                if (!fixture["cases"].contains(title)) continue;
                const json& times = fixture["cases"][title];
                REQUIRE(!times.empty());
                const support::DecodeCase built = support::build_case(spec, variant);
                const ForestOrder order = order_of(built.forest);
                tune::CandidateSet set = find_candidates(complete(built.problem(), order), built.forest, order, device, all, {});
                // As the compiler's report has it.
                for (TuneCandidate& candidate : set.all)
                    if (const json* kernel = kernel_in(times, candidate.config); kernel != nullptr && kernel->contains("spills"))
                        tune::drop(candidate, "pruned:spill", "");
                // No plan is faster than its bytes.
                for (const std::size_t i : set.alive()) CHECK(set.all[i].cost_us > set.floor_us);
                use(title, times, set);
            }
        }
    }
};

}  // namespace

TEST_CASE("tune cost: without measuring within 10 % of the best in 80 % of the FastTree cases") {
    Quality model, by_default;
    Measured("fasttree_h100.json").each("fasttree.json", [&](const std::string& title, const json& times, tune::CandidateSet& set) {
        model.add(title, times, set.all[tune::least_cost(set.all)].config);
        by_default.add(title, times, set.all.front().config);
    });
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

// By the constants of an H100. Row-heavy drafts, where the warpgroups' rings decide, and beams of few and of many rows.
TEST_CASE("tune cost: drafts and beams on an H200, within 10 % of the best that was measured in 90 %") {
    const Measured measurements("verify_h200.json");
    Quality drafts, beams;
    int untried = 0;
    const auto add_to = [&](Quality& quality) {
        return [&](const std::string& title, const json& times, tune::CandidateSet& set) {
            untried += measured(times, set.all[tune::least_cost(set.all)].config) == kFar;
            for (TuneCandidate& candidate : set.all)
                if (measured(times, candidate.config) == kFar) tune::drop(candidate, "pruned:rank", "not measured");
            quality.add(title, times, set.all[tune::least_cost(set.all)].config);
        };
    };
    measurements.each("spec.json", add_to(drafts));
    measurements.each("beam.json", add_to(beams));
    CAPTURE(drafts.far);
    CAPTURE(beams.far);
    CHECK(drafts.cases == 40);
    CHECK(drafts.within_10 >= 38);
    CHECK(drafts.within_3 >= 31);
    CHECK(beams.cases == 10);
    CHECK(beams.within_10 >= 9);
    CHECK(beams.within_3 >= 5);
    // The others' first choices are among what was measured.
    CHECK(untried <= 4);
}
