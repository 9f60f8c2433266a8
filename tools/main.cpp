// SPDX-License-Identifier: Apache-2.0
#include <cstdio>

#include "common.h"

using namespace sapwood;
using namespace sapwood::tool;

namespace {

constexpr const char* kFooter =
    "Exit codes: 0 fine; 1 a check failed (wrong result, damaged cache entry, kernel that does not compile);\n"
    "2 wrong usage or an unreadable file; 3 not possible here (no GPU, no compiler).";

Exit exit_of(ErrorCode code) {
    switch (code) {
        case ErrorCode::kNoCompiler:
        case ErrorCode::kUnsupportedDevice:
        case ErrorCode::kDriver:
            return kNotPossible;
        case ErrorCode::kIo:
        case ErrorCode::kInvalidForest:
        case ErrorCode::kInvalidProblem:
        case ErrorCode::kInvalidArgument:
            return kUsage;
        default:
            return kCheckFailed;
    }
}

}  // namespace

int main(int argc, char** argv) {
    CLI::App app("Sapwood: generates, compiles, caches and runs attention kernels for tree-structured work", "sapwood");
    app.footer(kFooter);
    app.set_version_flag("--version", "sapwood " SAPWOOD_VERSION);
    app.require_subcommand(1);
    app.fallthrough(false);
    Action action;
    add_run(app, action);
    add_bench(app, action);
    add_bench_serve(app, action);
    add_bench_merge(app, action);
    add_inspect(app, action);
    add_warm(app, action);
    add_pack(app, action);
    add_merge(app, action);
    add_doctor(app, action);
    add_cache(app, action);
    add_demo(app, action);
    add_tune(app, action);
    for (CLI::App* sub : app.get_subcommands({})) sub->footer(kFooter);
    try {
        app.parse(argc, argv);
    } catch (const CLI::ParseError& error) {
        return app.exit(error) == 0 ? kOk : kUsage;
    }
    try {
        return action();
    } catch (const Stop& stop) {
        std::fprintf(stderr, "sapwood: %s\n", stop.text.c_str());
        return stop.code;
    } catch (const Error& error) {
        std::fprintf(stderr, "sapwood: %s\n", error.what());
        if (!error.detail().empty()) std::fprintf(stderr, "%s\n", error.detail().c_str());
        return exit_of(error.code());
    } catch (const std::exception& error) {
        std::fprintf(stderr, "sapwood: %s\n", error.what());
        return kCheckFailed;
    }
}
