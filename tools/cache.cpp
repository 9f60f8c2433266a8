// SPDX-License-Identifier: Apache-2.0
// sapwood cache: the kernels on disk.
#include "common.h"
#include "jit/disk_cache.h"
#include "terminal.h"

namespace sapwood::tool {
namespace {

struct CacheOptions {
    std::string directory, max = "1GiB", max_age, bundle, digest;
    bool json = false;
};

std::string age_text(std::int64_t mtime) {
    const auto seconds = static_cast<double>(std::time(nullptr) - mtime);
    if (seconds < 120) return text("%.0f s", seconds);
    if (seconds < 7200) return text("%.0f min", seconds / 60);
    if (seconds < 172800) return text("%.0f h", seconds / 3600);
    return text("%.0f d", seconds / 86400);
}

jit::DiskCache open(const CacheOptions& options) { return jit::DiskCache(std::filesystem::path(options.directory)); }

int list(const CacheOptions& options, bool verify) {
    const jit::DiskCache cache = open(options);
    const auto entries = cache.list(verify);
    Table table({{"digest", -12},
                 {"target", -8},
                 {"size", 9},
                 {"age", 7},
                 {"compile", 8},
                 {"registers", 9},
                 {"spills", 6},
                 {verify ? "health" : "key", -8}});
    std::uint64_t bytes = 0, damaged = 0;
    for (const jit::CacheEntryInfo& entry : entries) {
        bytes += entry.bytes;
        damaged += !entry.fault.empty();
        if (options.json) {
            const nlohmann::json line = {{"path", entry.path.string()},
                                         {"digest", entry.digest},
                                         {"key", entry.name},
                                         {"target", entry.target},
                                         {"compiler", entry.compiler},
                                         {"bytes", entry.bytes},
                                         {"mtime", entry.mtime},
                                         {"compile_ms", entry.compile_ms},
                                         {"registers", entry.resources.registers},
                                         {"spill_bytes", entry.resources.spill_bytes},
                                         {"fault", entry.fault}};
            std::printf("%s\n", line.dump().c_str());
            continue;
        }
        table.row({entry.digest.substr(0, 12), entry.target, bytes_text(static_cast<double>(entry.bytes)), age_text(entry.mtime),
                   text("%.0f ms", entry.compile_ms), text("%d", entry.resources.registers),
                   text("%d", entry.resources.spill_bytes),
                   !verify               ? entry.name
                   : entry.fault.empty() ? "ok"
                                         : entry.fault + ": " + entry.path.string()});
    }
    const std::string reason = cache.disabled_reason();
    std::fprintf(options.json ? stderr : stdout, "%s: %zu entries, %s%s%s%s\n",
                 cache.root().empty() ? "memory only" : cache.root().c_str(), entries.size(),
                 bytes_text(static_cast<double>(bytes)).c_str(),
                 verify ? text(", %llu damaged", static_cast<unsigned long long>(damaged)).c_str() : "", reason.empty() ? "" : "; ",
                 reason.c_str());
    return damaged ? kCheckFailed : kOk;
}

int verify_bundle(const CacheOptions& options) {
    std::string fault;
    const auto bundle = jit::Bundle::open(options.bundle, &fault);
    std::vector<std::string> faults = bundle ? bundle->verify() : std::vector{fault};
    if (bundle && !options.digest.empty() && options.digest != to_hex(bundle->digest()))
        faults.push_back("its digest is " + to_hex(bundle->digest()) + ", not the " + options.digest + " that was expected");
    for (const std::string& one : faults) std::printf("%s: %s\n", options.bundle.c_str(), one.c_str());
    if (bundle)
        std::printf("%s: %zu kernels, %zu attachments, %zu faults, digest %s\n", options.bundle.c_str(), bundle->entries().size(),
                    bundle->attachments().size(), faults.size(), to_hex(bundle->digest()).c_str());
    return faults.empty() ? kOk : kCheckFailed;
}

int verify(const CacheOptions& options) { return options.bundle.empty() ? list(options, true) : verify_bundle(options); }

int collect(const CacheOptions& options) {
    const auto age = options.max_age.empty() ? std::chrono::seconds::max()
                                             : std::chrono::seconds(static_cast<std::int64_t>(parse_seconds(options.max_age)));
    const std::uint64_t removed = open(options).collect(parse_bytes(options.max), age);
    std::printf("removed %s\n", bytes_text(static_cast<double>(removed)).c_str());
    return kOk;
}

int clear(const CacheOptions& options) {
    std::printf("removed %llu entries\n", static_cast<unsigned long long>(open(options).clear()));
    return kOk;
}

}  // namespace

void add_cache(CLI::App& app, Action& action) {
    auto options = std::make_shared<CacheOptions>();
    CLI::App* sub = app.add_subcommand("cache", "the kernel cache on disk");
    sub->require_subcommand(1);
    const auto add = [&](const char* name, const char* help, std::function<int(const CacheOptions&)> body) {
        CLI::App* verb = sub->add_subcommand(name, help);
        verb->add_option("--cache-dir", options->directory, "directory (default: as `sapwood doctor` says)");
        verb->callback([options, &action, body] { action = [options, body] { return body(*options); }; });
        return verb;
    };
    CLI::App* ls = add("ls", "list the entries", [](const CacheOptions& o) { return list(o, false); });
    CLI::App* check = add("verify", "check every byte of every entry, or of a bundle; exit code 1 if anything is damaged", verify);
    for (CLI::App* verb : {ls, check}) verb->add_flag("--json", options->json, "JSON lines");
    check->add_option("--bundle", options->bundle, "a bundle (.swb) in place of the cache");
    check->add_option("--digest", options->digest, "that the bundle must have");
    CLI::App* gc = add("gc", "remove entries that were not used for long, then the oldest down to a size", collect);
    gc->add_option("--max", options->max, "for example 1GiB")->capture_default_str();
    gc->add_option("--max-age", options->max_age, "for example 30d, by last use (default: any)");
    add("clear", "remove all entries", clear);
}

}  // namespace sapwood::tool
