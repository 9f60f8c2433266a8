// SPDX-License-Identifier: Apache-2.0
// sapwood merge: joins bundles, or tuning databases. Each kind has a row in kKinds: what its inputs look like, and how they are
// joined.
#include "base/publish.h"
#include "common.h"
#include "jit/bundle.h"
#include "tune/record_store.h"

namespace sapwood::tool {
namespace {

struct MergeOptions {
    std::vector<std::string> inputs;
    std::string out;
};

int merge_bundles(const MergeOptions& options) {
    std::vector<jit::BundleContents> bundles;
    for (const std::string& input : options.inputs) {
        std::string fault;
        const auto bundle = jit::Bundle::open(input, &fault);
        if (bundle == nullptr) throw Stop{kUsage, input + ": " + fault};
        bundles.push_back(bundle->contents());
    }
    const jit::MergedBundle merged = jit::merge_bundles(bundles);
    const std::vector<std::byte> bytes = jit::encode_bundle(merged.contents);
    if (const PublishResult written = replace_file(options.out, bytes); !written) throw Stop{kUsage, written.text()};
    for (const std::string& conflict : merged.conflicts) std::printf("conflict     %s\n", conflict.c_str());
    std::printf("%s: %zu kernels, %zu attachments, %zu conflicts, %s\ndigest %s\n", options.out.c_str(),
                merged.contents.kernels.size(), merged.contents.attachments.size(), merged.conflicts.size(),
                bytes_text(static_cast<double>(bytes.size())).c_str(),
                to_hex(digest_of(std::span(bytes).first(bytes.size() - sizeof(Digest)))).c_str());
    return kOk;
}

int merge_databases(const MergeOptions& options) {
    const std::vector<std::filesystem::path> inputs(options.inputs.begin(), options.inputs.end());
    const tune::MergeReport report = tune::merge_databases(inputs, options.out);
    std::printf("%zu buckets of %zu environments, %zu of them from more than one input\n", report.records, report.environments,
                report.joined);
    for (const std::string& conflict : report.conflicts) std::printf("conflict     %s\n", conflict.c_str());
    for (const std::string& fault : report.faults) std::fprintf(stderr, "left out: %s\n", fault.c_str());
    return report.faults.empty() ? kOk : kCheckFailed;
}

struct Kind {
    const char* name;
    bool (*is)(const std::string& input);
    int (*merge)(const MergeOptions& options);
};

constexpr Kind kKinds[] = {
    {"bundle (.swb)", [](const std::string& input) { return input.ends_with(".swb"); }, merge_bundles},
    {"tuning database (directory)", [](const std::string& input) { return std::filesystem::is_directory(input); }, merge_databases},
};

int merge(const MergeOptions& options) {
    std::string names;
    for (const Kind& kind : kKinds) {
        if (std::all_of(options.inputs.begin(), options.inputs.end(), kind.is)) return kind.merge(options);
        names += std::string(names.empty() ? "" : ", ") + kind.name;
    }
    throw Stop{kUsage, "the inputs must all be of one kind: " + names};
}

}  // namespace

void add_merge(CLI::App& app, Action& action) {
    auto options = std::make_shared<MergeOptions>();
    CLI::App* sub =
        app.add_subcommand("merge",
                           "join bundles (of two kernels that differ the first stays), or tuning databases (shards of one "
                           "tuning, in any order to the same result); conflicts are listed");
    sub->add_option("inputs", options->inputs, "bundles, or directories that `sapwood tune --db` wrote")
        ->required()
        ->check(CLI::ExistingPath);
    sub->add_option("--out", options->out, "file or directory to write")->required();
    sub->callback([options, &action] { action = [options] { return merge(*options); }; });
}

}  // namespace sapwood::tool
