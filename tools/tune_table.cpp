// SPDX-License-Identifier: Apache-2.0
// Result of `sapwood tune`: a row a problem, and what the choices are worth over all.
#include <cmath>

#include "terminal.h"
#include "tune.h"
#include "tune/config_fields.h"
#include "tune/config_json.h"

namespace sapwood::tool {
namespace {

const TuneCandidate* measured(const TuneReport& report, const DecodeConfig& config) {
    const TuneCandidate* candidate = report.find(config);
    return candidate != nullptr && candidate->measured() ? candidate : nullptr;
}

double least_us(const TuneReport& report) {
    double least = 0;
    for (const TuneCandidate& c : report.candidates)
        if (c.measured() && (least == 0 || c.median_us < least)) least = c.median_us;
    return least;
}

/// How far a rule's choices are from the best, over all problems.
struct Gap {
    const char* name;
    double log_sum = 0, worst = 1;
    int cases = 0, within_3 = 0, within_10 = 0;

    void add(double us, double best) {
        if (us <= 0 || best <= 0) return;
        const double ratio = us / best;
        log_sum += std::log(ratio);
        worst = std::max(worst, ratio);
        ++cases;
        within_3 += ratio <= 1.03;
        within_10 += ratio <= 1.10;
    }
    void print(std::FILE* to) const {
        if (cases == 0) return;
        std::fprintf(to,
                     "%-34s %4d cases: %.3f times the best (geometric mean), %.2f at worst; within 3 %%: %d (%.0f %%), within 10 "
                     "%%: %d (%.0f %%)\n",
                     name, cases, std::exp(log_sum / cases), worst, within_3, 100.0 * within_3 / cases, within_10,
                     100.0 * within_10 / cases);
    }
};

}  // namespace

void print_outcomes(const TuneArgs& args, const std::vector<TuneOutcome>& outcomes, double seconds) {
    std::FILE* notes = args.json.to_stdout() ? stderr : stdout;
    Table table({{"case", -40},
                 {"floor", 8},
                 {"default", 8},
                 {"chosen", 8},
                 {"gain", 6},
                 {"best", 8},
                 {"model", 8},
                 {"compared", 8},
                 {"noise", 6},
                 {"tried", 5},
                 {"configuration", -12}},
                notes);
    Gap chosen_gap{"chosen (this database)"}, model_gap{"cost model alone, no measurement"}, compared_gap{"compared database"},
        default_gap{"default"};
    double log_gain = 0;
    int gains = 0, changed = 0, slower = 0;
    JsonLines json = args.json;
    for (const TuneOutcome& outcome : outcomes) {
        const TuneReport& report = outcome.report;
        const TuneCandidate* by_default = measured(report, report.default_config);
        const TuneCandidate* chosen = measured(report, outcome.chosen);
        const TuneCandidate* model = measured(report, report.model_choice);
        const TuneCandidate* compared = outcome.compared ? measured(report, *outcome.compared) : nullptr;
        const double best = least_us(report);
        const auto us = [](const TuneCandidate* c) { return c != nullptr ? c->median_us : 0.0; };
        const auto cell = [&](const TuneCandidate* c) { return c != nullptr ? text("%.2f", c->median_us) : std::string("-"); };
        int tried = 0;
        for (const TuneCandidate& c : report.candidates) tried += c.samples > 0;
        if (by_default != nullptr && chosen != nullptr) {
            log_gain += std::log(by_default->median_us / chosen->median_us);
            ++gains;
            changed += !tune::same_config(outcome.chosen, report.default_config);
            slower += chosen->median_us > by_default->median_us * 1.01 + 2 * std::max(by_default->mad_us, chosen->mad_us);
        }
        chosen_gap.add(us(chosen), best), model_gap.add(us(model), best), default_gap.add(us(by_default), best);
        compared_gap.add(us(compared), best);
        nlohmann::json line = {{"case", outcome.title},
                               {"bucket", report.bucket},
                               {"list", report.list},
                               {"floor_us", report.floor_us},
                               {"default_us", us(by_default)},
                               {"chosen_us", us(chosen)},
                               {"best_us", best},
                               {"model_us", us(model)},
                               {"compared_us", us(compared)},
                               {"tried", tried},
                               {"complete", report.complete},
                               {"default", tune::config_json(report.default_config)},
                               {"chosen", tune::config_json(outcome.chosen)},
                               {"model", tune::config_json(report.model_choice)}};
        line["candidates"] = nlohmann::json::array();
        for (const TuneCandidate& c : report.candidates)
            line["candidates"].push_back({{"config", tune::config_json(c.config)},
                                          {"status", c.status},
                                          {"reason", c.reason},
                                          {"median_us", c.median_us},
                                          {"mad_us", c.mad_us},
                                          {"n", c.samples},
                                          {"cost_us", c.cost_us},
                                          {"model_us", c.model_us},
                                          {"registers", c.registers},
                                          {"spill_bytes", c.spill_bytes},
                                          {"shared_bytes", c.shared_bytes}});
        json.write(line);
        if (json.to_stdout()) continue;
        table.row({outcome.title, text("%.2f", report.floor_us), cell(by_default), cell(chosen),
                   by_default && chosen ? text("%.3f", by_default->median_us / chosen->median_us) : "-", text("%.2f", best),
                   cell(model), cell(compared), chosen ? text("%.1f %%", 100 * chosen->mad_us / chosen->median_us) : "-",
                   text("%d", tried),
                   tune::same_config(outcome.chosen, report.default_config) ? "(default)" : tune::config_text(outcome.chosen)});
    }
    if (gains > 0)
        std::fprintf(
            notes,
            "%d problems in %.0f s: default / chosen %.3f (geometric mean); %d choose another configuration than the default; "
            "%d slower than the default beyond noise\n",
            gains, seconds, std::exp(log_gain / gains), changed, slower);
    for (const Gap* gap : {&default_gap, &chosen_gap, &model_gap, &compared_gap}) gap->print(notes);
    if (!args.against.empty() && compared_gap.cases == 0)
        std::fprintf(notes, "%s has no record for this device and these kernels that could be compared\n", args.against.c_str());
    if (!args.exhaustive && gains > 0)
        std::fprintf(notes, "(the best of what was measured; --exhaustive measures every configuration that can run)\n");
}

}  // namespace sapwood::tool
