// SPDX-License-Identifier: Apache-2.0
#include "common.h"

#include <charconv>
#include <chrono>
#include <cstdarg>
#include <cstdio>

#include "cuda/sm_table.h"
#include "tune/config_fields.h"
#include "tune/config_json.h"

namespace sapwood::tool {

std::string text(const char* format, ...) {
    va_list args, again;
    va_start(args, format);
    va_copy(again, args);
    std::string result(static_cast<std::size_t>(std::vsnprintf(nullptr, 0, format, args)), '\0');
    std::vsnprintf(result.data(), result.size() + 1, format, again);
    va_end(again);
    va_end(args);
    return result;
}

std::string bytes_text(double bytes) {
    if (bytes < 1e3) return text("%.0f B", bytes);
    if (bytes < 1e6) return text("%.1f kB", bytes / 1e3);
    if (bytes < 1e9) return text("%.1f MB", bytes / 1e6);
    return text("%.2f GB", bytes / 1e9);
}

std::string micros_text(double us) {
    if (us < 100) return text("%.2f us", us);
    if (us < 1e4) return text("%.1f us", us);
    if (us < 1e6) return text("%.1f ms", us / 1e3);
    return text("%.2f s", us / 1e6);
}

double now_ms() { return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

double median(std::vector<double> values) {
    if (values.empty()) return 0;
    std::sort(values.begin(), values.end());
    const std::size_t half = values.size() / 2;
    return values.size() % 2 ? values[half] : (values[half - 1] + values[half]) / 2;
}

std::uint64_t parse_bytes(const std::string& given) {
    std::size_t end = 0;
    double number = -1;
    try {
        number = std::stod(given, &end);
    } catch (const std::exception&) {}
    std::string unit = given.substr(std::min(end, given.size()));
    for (char& c : unit) c = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
    static constexpr std::pair<const char*, double> kUnits[] = {
        {"", 1},    {"b", 1},    {"k", 1e3},      {"kb", 1e3},        {"m", 1e6},           {"mb", 1e6},
        {"g", 1e9}, {"gb", 1e9}, {"kib", 1024.0}, {"mib", 1048576.0}, {"gib", 1073741824.0}};
    for (const auto& [name, factor] : kUnits)
        if (number >= 0 && unit == name) return static_cast<std::uint64_t>(number * factor);
    throw Stop{kUsage, "'" + given + "' is not a size; write for example 500MB, 1GiB or 1048576"};
}

double parse_seconds(const std::string& given) {
    std::size_t end = 0;
    double number = -1;
    try {
        number = std::stod(given, &end);
    } catch (const std::exception&) {}
    static constexpr std::pair<const char*, double> kUnits[] = {{"", 1},   {"ms", 1e-3}, {"s", 1},
                                                                {"m", 60}, {"h", 3600},  {"d", 86400}};
    for (const auto& [name, factor] : kUnits)
        if (number >= 0 && number < 1e9 && given.substr(std::min(end, given.size())) == name) return number * factor;
    throw Stop{kUsage, "'" + given + "' is not a length of time; write for example 30d, 12h, 90m or 45s"};
}

DecodeConfig parse_config(const std::string& given, std::int32_t* heads) {
    DecodeConfig config;
    const auto set = [&](const std::string& name, const std::string& value) {
        if (heads == nullptr || name != "heads") return tune::set_field(config, name, value);
        const char* const end = value.data() + value.size();
        const auto parsed = std::from_chars(value.data(), end, *heads);
        return parsed.ec == std::errc{} && parsed.ptr == end && *heads > 0;
    };
    for (std::size_t at = 0; at < given.size();) {
        const std::size_t end = std::min(given.find(',', at), given.size()), equals = std::min(given.find('=', at), end);
        if (equals == end || !set(given.substr(at, equals - at), given.substr(equals + 1, end - equals - 1))) {
            std::string names;
            for (const tune::ConfigField& field : tune::config_fields())
                names += std::string(names.empty() ? "" : ", ") + field.name + "=";
            if (heads != nullptr) names += ", heads=";
            throw Stop{kUsage, "'" + given.substr(at, end - at) + "' in --config: write " + names + " with mainloop mma or wgmma"};
        }
        at = end + 1;
    }
    return config;
}

void Selection::add_options(CLI::App& app, bool file_only) {
    CLI::Option* what = app.add_option(
        "file", file,
        file_only ? "workload file (JSON), or a trace (.jsonl)" : "workload file, bundle, or key, digest or file of a cache entry");
    what->required();
    if (file_only) what->check(CLI::ExistingFile);
    app.add_option("--case", name, "case: exact name, else glob, else prefix");
    app.add_option("--heads", heads, "only these heads, as 32/8");
    app.add_option("--page", page_size, "only this page size");
    app.add_option("--layout", layout, "only random or contiguous pages")->check(CLI::IsMember({"random", "contiguous"}));
    app.add_option("--dtype", dtype, "only fp16 or bf16")->check(CLI::IsMember({"fp16", "bf16"}));
    add_kv_dtype(app);
    app.add_option("--head-dim", head_dim, "only this head dimension");
    app.add_option("--set", set, "only cases of this set");
    app.add_flag("--runs", runs, "contiguous cases of page size 1 without a page table");
    app.add_option("--limit", limit, "stop after so many");
}

void Selection::add_kv_dtype(CLI::App& app) {
    app.add_option("--kv-dtype", kv_dtype,
                   "K and V as_q (of Q's type) or fp8_e4m3, listed or not (default: what a case lists first)")
        ->check(CLI::IsMember({kv_dtype_name(KvDType::as_q), kv_dtype_name(KvDType::e4m3)}));
}

std::vector<Selection::Item> Selection::items() const {
    std::optional<KvDType> kv;
    if (!kv_dtype.empty()) kv = kv_dtype == kv_dtype_name(KvDType::e4m3) ? KvDType::e4m3 : KvDType::as_q;
    std::vector<Item> chosen;
    const auto specs = support::select(support::load_workload(file), name);
    for (const support::CaseSpec& spec : specs) {
        if (!set.empty() && spec.set != set) continue;
        for (const support::Variant& v : spec.variants(kv)) {
            if (!heads.empty() && heads != text("%d/%d", v.q_heads, v.kv_heads)) continue;
            if (page_size >= 0 && page_size != v.page_size) continue;
            if (head_dim > 0 && head_dim != v.head_dim) continue;
            if (!layout.empty() && layout != support::layout_name(v.layout)) continue;
            if (!dtype.empty() && (dtype == "fp16") != (v.dtype == DType::fp16)) continue;
            if (limit == 0 || chosen.size() < limit) chosen.push_back({spec, v});
        }
    }
    if (chosen.empty()) throw Stop{kUsage, "no case of " + file + " fits the selection"};
    return chosen;
}

void JsonLines::add_option(CLI::App& app) {
    app.add_option_function<std::vector<std::string>>(
           "--json",
           [this](const std::vector<std::string>& given) {
               wanted_ = true;
               if (!given.empty() && !given[0].empty() && given[0] != "-") path_ = given[0];
           },
           "JSON lines, into FILE or, without one, on standard output in place of the table")
        ->expected(0, 1)
        ->type_name("FILE");
}

void JsonLines::write(const nlohmann::json& line) {
    if (!wanted_) return;
    if (!file_ && !path_.empty()) {
        file_ = std::shared_ptr<std::FILE>(std::fopen(path_.c_str(), "w"), [](std::FILE* f) { f&& std::fclose(f); });
        if (!file_) throw Stop{kUsage, "cannot write " + path_};
    }
    std::FILE* to = file_ ? file_.get() : stdout;
    std::fprintf(to, "%s\n", line.dump().c_str());
    std::fflush(to);
}

int blocks_per_sm(const KernelReport& kernel) {
    if (kernel.blocks_per_sm > 0 || kernel.registers <= 0 || kernel.threads <= 0 || !kernel.target.starts_with("sm_"))
        return kernel.blocks_per_sm;
    const cuda::DeviceInfo sm = cuda::offline_device(kernel.target);
    const int warps = (kernel.threads + 31) / 32,
              registers = (kernel.registers * 32 + 255) / 256 * 256;               // a warp, as they are dealt out
    const int by_registers = sm.max_registers_per_sm / registers / 4 * 4 / warps;  // warps come in fours
    const int by_shared = sm.max_shared_per_sm / (kernel.shared_bytes + 1024);     // the driver keeps 1 KB a block
    return std::min({by_registers, by_shared, sm.max_threads_per_sm / kernel.threads, 32});
}

nlohmann::json to_json(const support::DecodeCase& which) {
    const support::Variant& v = which.variant;
    return {{"case", which.name},
            {"dtype", dtype_name(v.dtype)},
            {"kv_dtype", kv_dtype_name(v.kv_dtype)},
            {"head_dim", v.head_dim},
            {"q_heads", v.q_heads},
            {"kv_heads", v.kv_heads},
            {"page_size", v.page_size},
            {"layout", layout_name(v.layout)},
            {"requests", which.counts.requests},
            {"unique_tokens", which.counts.unique_tokens},
            {"path_tokens", which.counts.path_tokens}};
}

nlohmann::json to_json(const DecodePlanInfo& info) {
    return {{"config", tune::config_json(info.config)},
            {"items", info.items},
            {"partial_rows", info.partial_rows},
            {"hbm_bytes", info.hbm_bytes},
            {"kv_load_bytes", info.kv_load_bytes},
            {"partial_bytes", info.partial_bytes},
            {"flops", info.flops},
            {"model_cost", info.model_cost},
            {"grid", info.grid}};
}

nlohmann::json to_json(const KernelReport& report) {
    return {{"key", report.key},
            {"target", report.target},
            {"compiler", report.compiler},
            {"origin", report.origin},
            {"prepare_ms", report.prepare_ms},
            {"compile_ms", report.compile_ms},
            {"registers", report.registers},
            {"spill_bytes", report.spill_bytes},
            {"shared_bytes", report.shared_bytes},
            {"threads", report.threads},
            {"blocks_per_sm", blocks_per_sm(report)}};
}

}  // namespace sapwood::tool
