// SPDX-License-Identifier: Apache-2.0
// The report of `sapwood tune`: one HTML file with its style and SVG plots inside, for a browser without a network.
#include <cmath>
#include <fstream>

#include "tune.h"
#include "tune/config_fields.h"

namespace sapwood::tool {
namespace {

std::string escaped(const std::string& plain) {
    std::string out;
    for (const char c : plain) {
        switch (c) {
            case '<':
                out += "&lt;";
                break;
            case '>':
                out += "&gt;";
                break;
            case '&':
                out += "&amp;";
                break;
            case '"':
                out += "&quot;";
                break;
            default:
                out += c;
        }
    }
    return out;
}

/// A logarithmic axis from decade-friendly bounds onto pixels.
struct Axis {
    double low = 1, high = 10, from = 0, to = 1;
    static Axis over(double least, double most, double from, double to) {
        Axis axis{least, most, from, to};
        if (!(least > 0) || !(most > 0)) axis.low = 1, axis.high = 10;
        axis.low /= 1.1, axis.high *= 1.1;
        return axis;
    }
    double operator()(double value) const { return from + (to - from) * std::log(value / low) / std::log(high / low); }
    std::vector<double> ticks() const {
        std::vector<double> ticks;
        const bool narrow = high / low < 20;
        for (double decade = std::pow(10, std::floor(std::log10(low))); decade <= high; decade *= 10)
            for (const double step : {1.0, 1.5, 2.0, 3.0, 5.0, 7.0})
                if (decade * step >= low && decade * step <= high && (narrow || step == 1 || step == 3))
                    ticks.push_back(decade * step);
        return ticks;
    }
};

std::string dot(double x, double y, const char* style, const std::string& title, double radius = 4) {
    return text("<circle cx='%.1f' cy='%.1f' r='%.1f' class='%s'><title>", x, y, radius, style) + escaped(title) +
           "</title></circle>";
}

/// Times of all problems as multiples of the floor: default, chosen, best.
std::string against_floor(const std::vector<TuneOutcome>& outcomes) {
    struct Row {
        const TuneOutcome* outcome;
        double by_default = 0, chosen = 0, best = 0;
    };
    std::vector<Row> rows;
    double most = 1;
    for (const TuneOutcome& outcome : outcomes) {
        Row row{&outcome};
        for (const TuneCandidate& c : outcome.report.candidates) {
            if (!c.measured() || outcome.report.floor_us <= 0) continue;
            const double ratio = c.median_us / outcome.report.floor_us;
            if (tune::same_config(c.config, outcome.report.default_config)) row.by_default = ratio;
            if (tune::same_config(c.config, outcome.chosen)) row.chosen = ratio;
            if (row.best == 0 || ratio < row.best) row.best = ratio;
        }
        if (row.by_default > 0) rows.push_back(row), most = std::max({most, row.by_default, row.chosen});
    }
    if (rows.empty()) return {};
    const double height = static_cast<double>(rows.size()) * 16 + 40;
    const Axis x = Axis::over(1, most, 300, 980);
    std::string svg = text("<h2>Chosen against default, in multiples of the floor</h2><svg viewBox='0 0 1000 %.0f'>", height);
    for (const double tick : x.ticks())
        svg += text("<line x1='%.1f' x2='%.1f' y1='10' y2='%.0f' class='grid'/><text x='%.1f' y='%.0f' class='tick'>%g</text>",
                    x(tick), x(tick), height - 25, x(tick), height - 10, tick);
    for (std::size_t i = 0; i < rows.size(); ++i) {
        const Row& row = rows[i];
        const double y = 20 + 16 * static_cast<double>(i);
        svg += text("<text x='290' y='%.1f' class='name'>", y + 4) + escaped(row.outcome->title) + "</text>";
        if (row.chosen > 0)
            svg += text("<line x1='%.1f' x2='%.1f' y1='%.1f' y2='%.1f' class='gain'/>", x(row.by_default), x(row.chosen), y, y);
        svg += dot(x(row.best), y, "best", text("best measured: %.2f", row.best), 6);
        svg += dot(x(row.by_default), y, "default", text("default: %.2f", row.by_default));
        if (row.chosen > 0)
            svg += dot(x(row.chosen), y, "chosen", text("chosen: %.2f, ", row.chosen) + tune::config_text(row.outcome->chosen));
    }
    return svg +
           "</svg><p class='key'><b class='default'>●</b> default <b class='chosen'>●</b> chosen <b class='best'>●</b> best "
           "measured</p>";
}

/// Where the cost model was wrong: its time against the measured one, every candidate of every problem.
std::string against_model(const std::vector<TuneOutcome>& outcomes) {
    double least = 1e30, most = 0;
    for (const TuneOutcome& outcome : outcomes)
        for (const TuneCandidate& c : outcome.report.candidates)
            if (c.measured() && c.cost_us > 0)
                least = std::min({least, c.median_us, c.cost_us}), most = std::max({most, c.median_us, c.cost_us});
    if (most == 0) return {};
    const Axis x = Axis::over(least, most, 60, 580), y = Axis::over(least, most, 560, 20);
    std::string svg =
        "<h2>Cost model against measurement (microseconds; the line: equal)</h2><svg viewBox='0 0 600 600' class='square'>";
    for (const double tick : x.ticks())
        svg += text(
            "<line x1='%.1f' x2='%.1f' y1='20' y2='560' class='grid'/><text x='%.1f' y='575' class='tick'>%g</text>"
            "<line x1='60' x2='580' y1='%.1f' y2='%.1f' class='grid'/><text x='55' y='%.1f' class='name'>%g</text>",
            x(tick), x(tick), x(tick), tick, y(tick), y(tick), y(tick) + 4, tick);
    svg += text("<line x1='%.1f' y1='%.1f' x2='%.1f' y2='%.1f' class='gain'/>", x(x.low), y(y.low), x(x.high), y(y.high));
    for (const TuneOutcome& outcome : outcomes)
        for (const TuneCandidate& c : outcome.report.candidates)
            if (c.measured() && c.cost_us > 0)
                svg += dot(x(c.median_us), y(c.cost_us), tune::same_config(c.config, outcome.chosen) ? "chosen" : "default",
                           outcome.title + ": " + tune::config_text(c.config) +
                               text(", measured %.2f, model %.2f", c.median_us, c.cost_us),
                           2.5);
    return svg + "<text x='320' y='595' class='tick'>measured</text></svg>";
}

/// Bars of one problem, fastest first; the floor as a line.
std::string candidates_of(const TuneOutcome& outcome) {
    std::vector<const TuneCandidate*> shown, rest;
    const auto time_of = [](const TuneCandidate& c) { return c.samples > 0 ? c.median_us : c.cost_us; };
    std::size_t twins = 0, ranked_out = 0;
    for (const TuneCandidate& c : outcome.report.candidates) {
        twins += c.status == "pruned:same-plan", ranked_out += c.status == "pruned:rank";
        if (c.status == "pruned:same-plan" || c.status == "pruned:rank") continue;
        (c.status == "ok" && time_of(c) > 0 ? shown : rest).push_back(&c);
    }
    std::stable_sort(shown.begin(), shown.end(), [&](const auto* a, const auto* b) { return time_of(*a) < time_of(*b); });
    double most = outcome.report.floor_us;
    for (const TuneCandidate* c : shown) most = std::max(most, time_of(*c));
    const double scale = most > 0 ? 420 / most : 0, height = 14 * static_cast<double>(shown.size()) + 10;
    std::string html = "<details><summary>" + escaped(outcome.title) + text(" <small>floor %.2f µs, ", outcome.report.floor_us) +
                       escaped(outcome.report.bucket) + "</small></summary>" + text("<svg viewBox='0 0 1000 %.0f'>", height);
    double y = 4;
    for (const TuneCandidate* c : shown) {
        const bool chosen = tune::same_config(c->config, outcome.chosen),
                   by_default = tune::same_config(c->config, outcome.report.default_config);
        html += text("<rect x='440' y='%.0f' width='%.1f' height='10' class='%s'/>", y, time_of(*c) * scale,
                     chosen       ? "chosen"
                     : by_default ? "default"
                                  : "other");
        html += text("<text x='430' y='%.0f' class='name'>", y + 9) + escaped(tune::config_text(c->config)) +
                (by_default ? " (default)" : "") + "</text>" +
                text("<text x='%.1f' y='%.0f' class='value'>", 446 + time_of(*c) * scale, y + 9);
        html += c->samples > 0 ? text("%.2f ± %.2f (model %.1f)", c->median_us, c->mad_us, c->cost_us)
                               : text("model %.1f, %d registers, %d spilled, %d a SM", c->cost_us, c->registers, c->spill_bytes,
                                      c->blocks_per_sm);
        html += "</text>";
        y += 14;
    }
    html += text("<line x1='%.1f' x2='%.1f' y1='0' y2='%.0f' class='floor'/></svg>", 440 + outcome.report.floor_us * scale,
                 440 + outcome.report.floor_us * scale, height);
    if (twins + ranked_out > 0)
        html += text("<p>Not shown: %zu that plan the same work as another, %zu that the cost model ranked out.</p>", twins,
                     ranked_out);
    if (!rest.empty()) {
        html += "<table><tr><th>configuration<th>status<th>reason";
        for (const TuneCandidate* c : rest)
            html += "<tr><td>" + escaped(tune::config_text(c->config)) + "<td>" + escaped(c->status) + "<td>" + escaped(c->reason);
        html += "</table>";
    }
    return html + "</details>\n";
}

constexpr const char* kStyle =
    "body{font:14px/1.5 system-ui,sans-serif;margin:2em auto;max-width:1040px;padding:0 1em;color:#222;background:#fff}"
    "svg{width:100%;font:10px system-ui,sans-serif}svg.square{max-width:600px}.grid{stroke:#e4e4e4}.gain{stroke:#999}"
    ".floor{stroke:#c33;stroke-dasharray:3}.tick{text-anchor:middle;fill:#555}.name{text-anchor:end;fill:#333}.value{fill:#555}"
    ".default{fill:#d95f02;color:#d95f02}.chosen{fill:#1b7a3d;color:#1b7a3d}.best{fill:#cfe8d6;color:#9c9}.other{fill:#b8c4d6}"
    "summary{cursor:pointer;padding:2px 0}small{color:#777}table{border-collapse:collapse;font-size:12px}"
    "td,th{padding:1px 8px;text-align:left;border-bottom:1px solid #eee}"
    "@media(prefers-color-scheme:dark){body{background:#181a1b;color:#ddd}.name,.tick,.value{fill:#bbb}.grid{stroke:#333}"
    "td,th{border-color:#333}}";

}  // namespace

void write_report(const std::string& path, const TuneArgs& args, const std::string& device,
                  const std::vector<TuneOutcome>& outcomes) {
    std::ofstream out(path, std::ios::binary);
    if (!out) throw Stop{kUsage, "cannot write " + path};
    std::size_t measured = 0, tried = 0;
    for (const TuneOutcome& outcome : outcomes)
        for (const TuneCandidate& c : outcome.report.candidates) ++tried, measured += c.samples > 0;
    std::string files;
    for (const std::string& file : args.workloads) files += (files.empty() ? "" : ", ") + file;
    out << "<!doctype html><html lang='en'><meta charset='utf-8'><meta name='viewport' content='width=device-width'>"
        << "<title>sapwood tune</title><style>" << kStyle << "</style><h1>sapwood tune</h1><p>" << escaped(device) << "; "
        << escaped(files) << escaped(args.trace) << "; " << outcomes.size() << " problems, " << tried << " candidates, " << measured
        << (measured ? " measured.</p>" : " measured: no GPU; times are the cost model's.</p>");
    out << against_floor(outcomes) << against_model(outcomes) << "<h2>Candidates of each problem</h2><p>Bars: microseconds a call; "
        << "dashed: the floor. Green: chosen; orange: default.</p>\n";
    for (const TuneOutcome& outcome : outcomes) out << candidates_of(outcome);
    out << "</html>\n";
    out.flush();
    if (!out) throw Stop{kUsage, "cannot write all of " + path};
}

}  // namespace sapwood::tool
