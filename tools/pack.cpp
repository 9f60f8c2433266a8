// SPDX-License-Identifier: Apache-2.0
// sapwood pack: a read-only bundle of kernels and tuning records, for machines that have the driver alone.
#include <mutex>

#include "base/publish.h"
#include "base/thread_pool.h"
#include "engine/pack.h"
#include "kernel/key_text.h"
#include "kernel_set.h"
#include "terminal.h"

namespace sapwood::tool {
namespace {

struct PackOptions {
    KernelSet kernels;
    std::string out, cache, tune;
    unsigned jobs = 0;
};

/// Compiles or fetches what the set names; how many failed.
std::size_t pack_set(jit::BundleContents& contents, const PackOptions& options) {
    auto targets = options.kernels.resolve({.cache_dir = options.cache});
    std::vector<std::pair<Engine*, std::string>> jobs;
    std::size_t failed = 0, done = 0;
    for (auto& [name, target] : targets) {
        for (const std::string& key : target.keys) jobs.emplace_back(target.engine.get(), key);
        for (const std::string& fault : target.faults) std::fprintf(stderr, "%s: no kernel: %s\n", name.c_str(), fault.c_str());
        failed += target.faults.size();
    }
    Progress progress("pack", jobs.size());
    std::mutex mutex;
    parallel_for(jobs.size(), options.jobs, [&](std::size_t i) {
        jit::BundleContents one;
        std::string fault;
        try {
            pack_kernel(one, *jobs[i].first, parse_key(jobs[i].second));
        } catch (const std::exception& error) {
            fault = error.what();
        }
        std::lock_guard lock(mutex);
        progress.step(++done, jobs[i].second);
        if (!fault.empty()) {
            progress.clear();
            std::fprintf(stderr, "%s: %s\n", jobs[i].second.c_str(), fault.c_str());
            ++failed;
        }
        contents.kernels.merge(one.kernels);
    });
    return failed;
}

int pack(const PackOptions& options) {
    jit::BundleContents contents = empty_bundle();
    std::size_t failed = 0;
    if (options.kernels.given()) {
        failed = pack_set(contents, options);
    } else {
        const jit::DiskCache cache{std::filesystem::path(options.cache)};
        const std::size_t left_out = pack_cache(contents, cache, options.kernels.targets());
        std::printf("from %s; %zu entries left out (damaged, of other templates or of other compiler builds)\n",
                    cache.root().empty() ? cache.disabled_reason().c_str() : cache.root().c_str(), left_out);
    }
    if (!options.tune.empty()) pack_tuning(contents, options.tune);
    if (failed != 0) throw Stop{kCheckFailed, text("%zu kernels failed; nothing is written", failed)};
    if (contents.kernels.empty() && contents.attachments.empty())
        throw Stop{kCheckFailed,
                   "there is nothing to pack: warm the cache first, or name kernels by --engine-config, --from-trace, --keys"};
    const std::vector<std::byte> bytes = jit::encode_bundle(contents);
    if (const PublishResult written = replace_file(options.out, bytes); !written) throw Stop{kUsage, written.text()};
    std::printf("%s: %zu kernels, %zu attachments, %s\ndigest %s\n", options.out.c_str(), contents.kernels.size(),
                contents.attachments.size(), bytes_text(static_cast<double>(bytes.size())).c_str(),
                to_hex(digest_of(std::span(bytes).first(bytes.size() - sizeof(Digest)))).c_str());
    return kOk;
}

}  // namespace

void add_pack(CLI::App& app, Action& action) {
    auto options = std::make_shared<PackOptions>();
    CLI::App* sub =
        app.add_subcommand("pack",
                           "write a read-only bundle: the kernels of an engine configuration, a trace or a list of keys, or "
                           "without one all of the cache");
    sub->add_option("--out", options->out, "bundle to write (.swb)")->required();
    options->kernels.add_options(*sub);
    sub->add_option("--tune", options->tune, "directory of tuning records to attach")->check(CLI::ExistingDirectory);
    sub->add_option("--jobs", options->jobs, "compiles at a time (default: one a core)");
    sub->add_option("--cache-dir", options->cache, "kernel cache (default: as `sapwood doctor` says)");
    sub->callback([options, &action] { action = [options] { return pack(*options); }; });
}

}  // namespace sapwood::tool
