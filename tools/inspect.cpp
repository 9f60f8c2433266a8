// SPDX-License-Identifier: Apache-2.0
// sapwood inspect: everything known of a kernel, from a workload case or from a cache entry.
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <fstream>

#include "common.h"
#include "execute.h"
#include "jit/disk_cache.h"
#include "kernel/template_store.h"
#include "terminal.h"

extern char** environ;

namespace sapwood::tool {
namespace {

struct InspectOptions {
    Selection cases;
    std::string target = "auto", config, cache;
    bool source = false, sass = false, plan = false, json = false;
    int items = 32;
};

/// Runs a program found on PATH with its output on ours; false if there is none. No shell.
bool run_program(const std::vector<std::string>& words) {
    std::vector<char*> argv;
    for (const std::string& word : words) argv.push_back(const_cast<char*>(word.c_str()));
    argv.push_back(nullptr);
    std::fflush(stdout);
    pid_t child = 0;
    if (posix_spawnp(&child, argv[0], nullptr, nullptr, argv.data(), environ) != 0) return false;
    int status = 0;
    waitpid(child, &status, 0);
    return WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

void print_assembly(const std::vector<std::byte>& binary, bool host) {
    std::string name = (std::filesystem::temp_directory_path() / "sapwood-XXXXXX").string();
    const int file = mkstemp(name.data());
    if (file < 0) throw Stop{kNotPossible, "cannot make a temporary file"};
    const bool written = write(file, binary.data(), binary.size()) == static_cast<ssize_t>(binary.size());
    close(file);
    const bool shown = written && (host ? run_program({"objdump", "-d", "-C", "--no-show-raw-insn", name})
                                        : run_program({"cuobjdump", "-sass", name}) || run_program({"nvdisasm", "-c", name}));
    std::filesystem::remove(name);
    if (!shown)
        throw Stop{kNotPossible,
                   host ? "--sass needs objdump on PATH" : "--sass needs cuobjdump or nvdisasm (CUDA toolkit) on PATH"};
}

void print_resources(const KernelReport& kernel) {
    std::printf("registers    %d a thread\nspills       %d bytes a thread\n", kernel.registers, kernel.spill_bytes);
    if (kernel.shared_bytes > 0) std::printf("shared       %d bytes a block\n", kernel.shared_bytes);
    if (kernel.threads > 0) std::printf("threads      %d a block\n", kernel.threads);
    if (const int blocks = blocks_per_sm(kernel); blocks > 0)
        std::printf("occupancy    %d blocks an SM = %d warps%s\n", blocks, blocks * kernel.threads / 32,
                    kernel.blocks_per_sm > 0 ? "" : " (calculated)");
}

int inspect_case(InspectOptions& options) {
    options.cases.limit = 1;
    const auto [spec, variant] = options.cases.items().front();
    const support::DecodeCase which = support::build_case(spec, variant, options.cases.build_options());
    Engine engine({.target = options.target, .cache_dir = options.cache});
    DecodePlan plan = plan_case(engine, which, parse_config(options.config));
    const KernelReport kernel = engine.prepare(plan);
    if (options.json) {
        nlohmann::json line = to_json(which);
        line["kernel"] = to_json(kernel), line["plan"] = to_json(plan.info());
        if (options.source) line["source"] = engine.source(plan);
        std::printf("%s\n", line.dump(2).c_str());
        return kOk;
    }
    std::printf(
        "case         %s\nkey          %s\ntarget       %s\ncompiler     %s\norigin       %s, %.1f ms now, %.1f ms in the "
        "compiler\n",
        which.title().c_str(), kernel.key.c_str(), kernel.target.c_str(), kernel.compiler.c_str(), kernel.origin.c_str(),
        kernel.prepare_ms, kernel.compile_ms);
    print_resources(kernel);
    if (!kernel.log.empty()) std::printf("compiler log\n%s\n", kernel.log.c_str());
    if (options.plan) std::printf("\n%s\n", plan.to_string(options.items).c_str());
    if (options.source) std::printf("\n%s\n", engine.source(plan).c_str());
    if (options.sass) print_assembly(engine.binary(plan), engine.target() == "host");
    return kOk;
}

int inspect_bundle(const InspectOptions& options) {
    std::string fault;
    const auto bundle = jit::Bundle::open(options.cases.file, &fault);
    if (!bundle) throw Stop{kCheckFailed, options.cases.file + ": " + fault};
    const bool ours = bundle->template_set() == template_set_digest();
    nlohmann::json kernels = nlohmann::json::array(), attachments = nlohmann::json::array();
    for (const jit::BundleEntry& entry : bundle->entries()) {
        const auto artifact = bundle->read(entry, &fault);
        kernels.push_back({{"source", to_hex(entry.source)},
                           {"target", entry.target},
                           {"bytes", entry.bytes},
                           {"key", artifact ? artifact->name : ""},
                           {"compiler", artifact ? artifact->compiler : ""},
                           {"registers", artifact ? artifact->resources.registers : 0},
                           {"spill_bytes", artifact ? artifact->resources.spill_bytes : 0},
                           {"fault", artifact ? "" : fault}});
    }
    for (const jit::BundleAttachment& one : bundle->attachments())
        attachments.push_back({{"name", one.name}, {"bytes", one.bytes}});
    if (options.json) {
        std::printf("%s\n", nlohmann::json{{"digest", to_hex(bundle->digest())},
                                           {"template_set", bundle->template_set()},
                                           {"usable_here", ours},
                                           {"kernels", kernels},
                                           {"attachments", attachments}}
                                .dump(2)
                                .c_str());
        return kOk;
    }
    std::printf("digest       %s\ntemplates    %s%s\n", to_hex(bundle->digest()).c_str(), bundle->template_set().c_str(),
                ours ? " (this library's)" : " (NOT this library's: it would be skipped)");
    Table table({{"source", -12}, {"target", -8}, {"size", 9}, {"registers", 9}, {"spills", 6}, {"key", -8}});
    for (const auto& kernel : kernels)
        table.row({kernel["source"].get<std::string>().substr(0, 12), kernel["target"], bytes_text(kernel["bytes"].get<double>()),
                   kernel["registers"].dump(), kernel["spill_bytes"].dump(),
                   kernel["fault"].get<std::string>().empty() ? kernel["key"].get<std::string>()
                                                              : "DAMAGED: " + kernel["fault"].get<std::string>()});
    for (const auto& one : attachments)
        std::printf("attachment   %s, %s\n", one["name"].get<std::string>().c_str(),
                    bytes_text(one["bytes"].get<double>()).c_str());
    return kOk;
}

/// A cache entry by its file, by the beginning of its digest, or by its key text.
int inspect_entry(InspectOptions& options) {
    if (options.source || options.plan)
        throw Stop{kUsage, "--source and --plan need a workload file; an entry holds the compiled kernel only"};
    const jit::DiskCache cache(std::filesystem::path(options.cache));
    const std::string& wanted = options.cases.file;
    std::vector<jit::CacheEntryInfo> found;
    for (const jit::CacheEntryInfo& entry : cache.list(true))
        if (entry.path == wanted || entry.name == wanted || (wanted.size() >= 4 && entry.digest.starts_with(wanted)))
            found.push_back(entry);
    if (found.empty())
        throw Stop{kUsage,
                   "'" + wanted + "' is no workload file, and no entry of " + cache.root().string() + " has that key or digest"};
    for (const jit::CacheEntryInfo& entry : found) {
        std::printf(
            "key          %s\ndigest       %s\nfile         %s, %llu bytes\ntarget       %s\ncompiler     %s, %.1f ms\nhealth      "
            " %s\n",
            entry.name.c_str(), entry.digest.c_str(), entry.path.c_str(), static_cast<unsigned long long>(entry.bytes),
            entry.target.c_str(), entry.compiler.c_str(), entry.compile_ms, entry.fault.empty() ? "verified" : entry.fault.c_str());
        print_resources({.registers = entry.resources.registers,
                         .spill_bytes = entry.resources.spill_bytes,
                         .shared_bytes = entry.resources.static_shared,
                         .threads = entry.resources.max_threads});
        if (!options.sass) continue;
        std::ifstream in(entry.path, std::ios::binary);
        const std::string bytes{std::istreambuf_iterator<char>(in), {}};
        std::string fault;
        const auto artifact = jit::decode_entry(std::as_bytes(std::span(bytes)), nullptr, &fault);
        if (!artifact) throw Stop{kCheckFailed, entry.path.string() + ": " + fault};
        print_assembly(artifact->payload, artifact->kind == jit::PayloadKind::host_object);
    }
    return kOk;
}

}  // namespace

void add_inspect(CLI::App& app, Action& action) {
    auto options = std::make_shared<InspectOptions>();
    CLI::App* sub = app.add_subcommand(
        "inspect", "show a kernel: of a case of a workload file, or of a cache entry by key or digest; or what is in a bundle");
    options->cases.add_options(*sub, false);
    sub->add_option("--target", options->target, "auto, host, cuda, or an SM such as sm_90a")->capture_default_str();
    sub->add_option("--config", options->config, "tile sizes, as warps=4,block_kv=64");
    sub->add_flag("--source", options->source, "the rendered source");
    sub->add_flag("--sass", options->sass, "machine code, by cuobjdump or nvdisasm (host: objdump)");
    sub->add_flag("--plan", options->plan, "the plan's work items");
    sub->add_option("--items", options->items, "how many work items --plan shows")->capture_default_str();
    sub->add_flag("--json", options->json, "for machines");
    sub->add_option("--cache-dir", options->cache, "kernel cache");
    sub->callback([options, &action] {
        action = [options] {
            if (options->cases.file.ends_with(".swb")) return inspect_bundle(*options);
            return options->cases.file.ends_with(".json") ? inspect_case(*options) : inspect_entry(*options);
        };
    });
}

}  // namespace sapwood::tool
