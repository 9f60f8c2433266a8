// SPDX-License-Identifier: Apache-2.0
// Counters as Prometheus text (exposition format 0.0.4): a name once, with all its samples.
#include <cstdio>
#include <functional>

#include "engine/engine_impl.h"

namespace sapwood {
namespace {

using Services = std::vector<std::shared_ptr<KernelService>>;

/// Label values: backslash, quote and line feed are escaped.
std::string label_value(const std::string& value) {
    std::string text = "\"";
    for (const char c : value) {
        if (c == '\\' || c == '"') text += '\\';
        text += c == '\n' ? std::string("\\n") : std::string(1, c);
    }
    return text + "\"";
}

class Metrics {
public:
    explicit Metrics(const Services& services) {
        for (const auto& service : services)
            engines_.push_back({"engine=\"" + std::to_string(service->identity) + "\",target=" + label_value(service->setup.target),
                                service->stats(), service->uses(), service->sealed()});
    }

    using Value = std::function<double(const EngineStats&)>;
    void engine(const char* name, const char* type, const char* help, const Value& value, const std::string& label = {}) {
        head(name, type, help);
        for (const Engine& engine : engines_) sample(name, engine.labels + (label.empty() ? "" : "," + label), value(engine.stats));
    }

    std::string text() {
        engine("sapwood_launches_total", "counter", "Calls launched.", [](const auto& s) { return s.launches; });
        engine("sapwood_stand_in_launches_total", "counter", "Calls served by the nearest ready kernel in place of their own.",
               [](const auto& s) { return s.stand_in_launches; });
        engine(
            "sapwood_cache_hits_total", "counter", "Kernels that did not have to be compiled, by where they were found.",
            [](const auto& s) { return s.memory_hits; }, "layer=\"memory\"");
        engine(
            "sapwood_cache_hits_total", "counter", "", [](const auto& s) { return s.bundle_hits; }, "layer=\"bundle\"");
        engine(
            "sapwood_cache_hits_total", "counter", "", [](const auto& s) { return s.disk_hits; }, "layer=\"disk\"");
        engine("sapwood_compiles_total", "counter", "Kernels compiled.", [](const auto& s) { return s.compiles; });
        engine("sapwood_compile_milliseconds_total", "counter", "Time spent in compilers.",
               [](const auto& s) { return s.compile_ms; });
        engine("sapwood_compiles_after_seal_total", "counter", "Kernels compiled after seal(): 0 on a server that is prepared.",
               [](const auto& s) { return s.compiles_after_seal; });
        engine("sapwood_misses_after_seal_total", "counter", "Calls and plans after seal() whose kernel was not ready.",
               [](const auto& s) { return s.misses_after_seal; });
        engine("sapwood_background_compiles_total", "counter", "Kernels compiled while another one served.",
               [](const auto& s) { return s.background_compiles; });
        engine("sapwood_background_failures_total", "counter", "Background compiles that failed.",
               [](const auto& s) { return s.background_failures; });
        engine("sapwood_switches_total", "counter", "Plans that went over from a stand-in to their own kernel.",
               [](const auto& s) { return s.switches; });
        const char* help = "Plans made, by where their configuration came from (DecodePlanInfo::tuned).";
        engine(
            "sapwood_tuned_plans_total", "counter", help, [](const auto& s) { return s.tune_exact; }, "match=\"exact\"");
        engine(
            "sapwood_tuned_plans_total", "counter", "", [](const auto& s) { return s.tune_near; }, "match=\"near\"");
        engine(
            "sapwood_tuned_plans_total", "counter", "", [](const auto& s) { return s.tune_other_gpu; }, "match=\"other_gpu\"");
        engine(
            "sapwood_tuned_plans_total", "counter", "", [](const auto& s) { return s.tune_default; }, "match=\"default\"");
        engine("sapwood_tune_rejected_total", "counter", "Tuning records that could not run at the real sizes.",
               [](const auto& s) { return s.tune_rejected; });
        head("sapwood_sealed", "gauge", "1 after seal().");
        for (const Engine& engine : engines_) sample("sapwood_sealed", engine.labels, engine.sealed);
        head("sapwood_kernels_ready", "gauge", "Kernels that are ready.");
        for (const Engine& engine : engines_)
            sample("sapwood_kernels_ready", engine.labels, static_cast<double>(engine.uses.size()));
        kernels("sapwood_kernel_calls_total", "Calls that a kernel served.", [](const KernelUse& use) { return use.calls; });
        kernels("sapwood_kernel_stand_in_calls_total", "Calls that a kernel served for another one.",
                [](const KernelUse& use) { return use.stand_in_calls; });
        return std::move(text_);
    }

private:
    struct Engine {
        std::string labels;
        EngineStats stats;
        std::vector<KernelUse> uses;
        bool sealed;
    };

    void head(const std::string& name, const char* type, const std::string& help) {
        if (!help.empty()) text_ += "# HELP " + name + " " + help + "\n# TYPE " + name + " " + type + "\n";
    }
    void sample(const std::string& name, const std::string& labels, double value) {
        char number[32];
        std::snprintf(number, sizeof number, "%.17g", value);
        text_ += name + "{" + labels + "} " + number + "\n";
    }
    void kernels(const char* name, const char* help, const std::function<std::uint64_t(const KernelUse&)>& value) {
        head(name, "counter", help);
        for (const Engine& engine : engines_)
            for (const KernelUse& use : engine.uses)
                sample(name, engine.labels + ",kernel=" + label_value(use.key), static_cast<double>(value(use)));
    }

    std::vector<Engine> engines_;
    std::string text_;
};

}  // namespace

std::string Engine::metrics_text() const { return Metrics({impl_->service}).text(); }
std::string metrics() { return Metrics(live_services()).text(); }

}  // namespace sapwood
