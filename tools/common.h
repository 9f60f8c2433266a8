// SPDX-License-Identifier: Apache-2.0
// What every subcommand shares: exit codes, text helpers, the choice of cases.
#pragma once

#include <CLI/CLI.hpp>
#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "sapwood/sapwood.h"
#include "support/workload.h"

namespace sapwood::tool {

enum Exit : int { kOk = 0, kCheckFailed = 1, kUsage = 2, kNotPossible = 3 };

/// Ends a subcommand with a text for people and an exit code.
struct Stop {
    Exit code;
    std::string text;
};

/// printf into a string.
std::string text(const char* format, ...) __attribute__((format(printf, 1, 2)));
std::string bytes_text(double bytes);
std::string micros_text(double us);
double now_ms();  // monotonic
double median(std::vector<double> values);
/// "1GiB", "500M", "123" in bytes.
std::uint64_t parse_bytes(const std::string& given);
/// "30d", "12h", "90m", "45" in seconds.
double parse_seconds(const std::string& given);
/// "warps=4,block_kv=64": named tile sizes; what is not named stays with the planner. `heads`: where "heads=4" goes, which packs
/// have.
DecodeConfig parse_config(const std::string& given, std::int32_t* heads = nullptr);

/// FILE and the options that pick cases from it.
struct Selection {
    std::string file, name, heads, layout, dtype, kv_dtype, set;
    std::int32_t page_size = -1, head_dim = 0;
    bool runs = false;
    std::size_t limit = 0;

    void add_options(CLI::App& app, bool file_only = true);
    void add_kv_dtype(CLI::App& app);
    struct Item {
        support::CaseSpec spec;
        support::Variant variant;
    };
    /// Throws Stop{kUsage} if nothing is left.
    std::vector<Item> items() const;
    support::BuildOptions build_options() const { return {.runs_without_pages = runs}; }
};

/// One line a JSON object, on standard output or in a file.
class JsonLines {
public:
    void add_option(CLI::App& app);  // --json[=FILE]
    bool enabled() const { return wanted_; }
    bool to_stdout() const { return wanted_ && path_.empty(); }
    void write(const nlohmann::json& line);

private:
    bool wanted_ = false;
    std::string path_;
    std::shared_ptr<std::FILE> file_;
};

/// Blocks of the kernel that an SM holds: as the driver says, or, for an SM that is not here, calculated from registers, shared
/// memory and threads. 0 if not known.
int blocks_per_sm(const KernelReport& kernel);

nlohmann::json to_json(const support::DecodeCase& which);
nlohmann::json to_json(const DecodePlanInfo& info);
nlohmann::json to_json(const KernelReport& report);

// The subcommands: each adds itself to the app and sets `action`, called after parsing; its result is the exit code.
using Action = std::function<int()>;
void add_run(CLI::App& app, Action& action);
void add_bench(CLI::App& app, Action& action);
void add_inspect(CLI::App& app, Action& action);
void add_bench_serve(CLI::App& app, Action& action);
void add_bench_merge(CLI::App& app, Action& action);
void add_warm(CLI::App& app, Action& action);
void add_pack(CLI::App& app, Action& action);
void add_merge(CLI::App& app, Action& action);
void add_doctor(CLI::App& app, Action& action);
void add_cache(CLI::App& app, Action& action);
void add_demo(CLI::App& app, Action& action);
void add_tune(CLI::App& app, Action& action);

}  // namespace sapwood::tool
