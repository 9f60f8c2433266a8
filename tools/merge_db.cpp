// SPDX-License-Identifier: Apache-2.0
// sapwood merge-db: joins tuning databases, in any order to the same result.
#include "tune.h"
#include "tune/record_store.h"

namespace sapwood::tool {

void add_merge_db(CLI::App& app, Action& action) {
    struct Options {
        std::vector<std::string> inputs;
        std::string out;
    };
    auto options = std::make_shared<Options>();
    CLI::App* sub = app.add_subcommand("merge-db", "join tuning databases, such as the shards of one tuning on several machines");
    sub->add_option("databases", options->inputs, "directories that `sapwood tune --db` wrote")->required();
    sub->add_option("--out", options->out, "directory to write; may be one of the inputs")->required();
    sub->callback([options, &action] {
        action = [options]() -> int {
            const std::vector<std::filesystem::path> inputs(options->inputs.begin(), options->inputs.end());
            const tune::MergeReport report = tune::merge_databases(inputs, options->out);
            std::printf("%zu buckets of %zu environments, %zu of them from more than one input\n", report.records,
                        report.environments, report.joined);
            for (const std::string& conflict : report.conflicts) std::printf("conflict: %s\n", conflict.c_str());
            for (const std::string& fault : report.faults) std::fprintf(stderr, "left out: %s\n", fault.c_str());
            return report.faults.empty() ? kOk : kCheckFailed;
        };
    });
}

}  // namespace sapwood::tool
