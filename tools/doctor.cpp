// SPDX-License-Identifier: Apache-2.0
// sapwood doctor: what is here, and what each missing piece would be needed for.
#include <unistd.h>

#include "base/env.h"
#include "common.h"
#include "cuda/device.h"
#include "cuda/nvrtc.h"
#include "host/host.h"
#include "jit/disk_cache.h"
#include "kernel/template_store.h"
#include "tune/epoch.h"

namespace sapwood::tool {
namespace {

/// Runs `ask`; an Error becomes its text.
template <class Ask>
std::string ask_or_error(Ask&& ask) {
    try {
        return ask();
    } catch (const Error& error) {
        return error.what();
    }
}

nlohmann::json driver() {
    nlohmann::json found = {{"problem", cuda::driver_problem()}, {"devices", nlohmann::json::array()}};
    for (int i = 0; i < cuda::device_count(); ++i) {
        try {
            const cuda::DeviceInfo info = cuda::Device::open(i)->info();
            found["driver"] = text("%d.%d", info.driver_version / 1000, info.driver_version % 1000 / 10);
            found["devices"].push_back({{"ordinal", i},
                                        {"name", info.name},
                                        {"sm", text("sm_%d%d", info.major, info.minor)},
                                        {"sms", info.sms},
                                        {"memory_bytes", info.memory_bytes},
                                        {"l2_bytes", info.l2_bytes},
                                        {"shared_per_block", info.max_shared_per_block_optin},
                                        {"usable", info.major >= 8}});
        } catch (const Error& error) {
            found["devices"].push_back({{"ordinal", i}, {"problem", error.what()}});
        }
    }
    return found;
}

nlohmann::json nvrtc() {
    cuda::Nvrtc compiler;
    nlohmann::json found = {{"path", compiler.path()}};
    if (compiler.path().empty()) {
        found["problem"] = ask_or_error([&] { return compiler.identity(); });
        return found;
    }
    found["identity"] = ask_or_error([&] { return compiler.identity(); });
    found["version"] = ask_or_error([&] { return compiler.version(); });
    try {
        for (const int arch : compiler.supported_archs())
            if (arch >= 80) found["sms"].push_back(arch);  // Sapwood's kernels begin at 8.0
    } catch (const Error& error) {
        found["problem"] = error.what();
    }
    return found;
}

nlohmann::json host_compiler() {
    host::Compiler compiler;
    nlohmann::json found = {{"path", compiler.path()}};
    found[compiler.path().empty() ? "problem" : "identity"] = ask_or_error([&] { return compiler.identity(); });
    return found;
}

nlohmann::json cache(const std::string& directory) {
    const jit::DiskCache disk{std::filesystem::path(directory)};
    nlohmann::json found = {{"root", disk.root().string()}, {"problem", disk.disabled_reason()}};
    std::uint64_t bytes = 0, entries = 0, damaged = 0;
    for (const jit::CacheEntryInfo& entry : disk.list(true)) bytes += entry.bytes, ++entries, damaged += !entry.fault.empty();
    found["entries"] = entries, found["bytes"] = bytes, found["damaged"] = damaged;
    std::error_code failure;
    const auto space = std::filesystem::space(disk.root(), failure);
    if (!failure) found["free_bytes"] = space.available;
    return found;
}

nlohmann::json bundles() {
    nlohmann::json found = nlohmann::json::array();
    const std::string listed = env::get("SAPWOOD_BUNDLE_PATH").value_or("");
    for (std::size_t at = 0; at < listed.size();) {
        const std::size_t end = std::min(listed.find(':', at), listed.size());
        if (end > at) {
            std::string path = listed.substr(at, end - at), problem;
            const auto bundle = jit::Bundle::open(path, &problem);
            if (bundle && bundle->template_set() != template_set_digest()) problem = "made of other templates than this library's";
            found.push_back({{"path", path}, {"kernels", bundle ? bundle->entries().size() : 0}, {"problem", problem}});
        }
        at = end + 1;
    }
    return found;
}

nlohmann::json tuning(const std::string& cache_directory) {
    return {{"code", tune::code_digest()},
            {"epoch", tune::tuning_epoch().number},
            {"records", ask_or_error([&] { return Engine({.target = "auto", .cache_dir = cache_directory}).describe_tuning(); })}};
}

std::string field(const nlohmann::json& of, const char* name) {
    if (!of.contains(name)) return {};
    return of.at(name).is_string() ? of.at(name).get<std::string>() : of.at(name).dump();
}

void print(const nlohmann::json& all) {
    const auto& cuda = all.at("cuda");
    const std::string problem = field(cuda, "problem");
    std::printf("driver       %s\n", problem.empty() ? ("for CUDA " + field(cuda, "driver")).c_str() : problem.c_str());
    for (const auto& device : cuda.at("devices")) {
        if (device.contains("problem"))
            std::printf("device %s     %s\n", field(device, "ordinal").c_str(), field(device, "problem").c_str());
        else
            std::printf("device %s     %s, %s, %s SMs, %s, L2 %s%s\n", field(device, "ordinal").c_str(),
                        field(device, "name").c_str(), field(device, "sm").c_str(), field(device, "sms").c_str(),
                        bytes_text(device.at("memory_bytes").get<double>()).c_str(),
                        bytes_text(device.at("l2_bytes").get<double>()).c_str(),
                        device.at("usable").get<bool>() ? "" : " (too old: 8.0 is the first)");
    }
    const auto& nvrtc = all.at("nvrtc");
    if (field(nvrtc, "path").empty()) {
        std::printf("NVRTC        none: kernels for GPUs cannot be compiled here, cached ones still run\n             %s\n",
                    field(nvrtc, "problem").c_str());
    } else {
        std::printf("NVRTC        %s, %s\n             %s\n", field(nvrtc, "version").c_str(), field(nvrtc, "path").c_str(),
                    field(nvrtc, "identity").c_str());
        std::printf("SMs          %s\n", field(nvrtc, nvrtc.contains("sms") ? "sms" : "problem").c_str());
    }
    const auto& host = all.at("host");
    std::printf("C++          %s (host target)\n             %s\n",
                field(host, "path").empty() ? "none" : field(host, "path").c_str(),
                field(host, host.contains("identity") ? "identity" : "problem").c_str());
    const auto& cache = all.at("cache");
    std::printf("cache        %s%s%s\n             %s entries, %s, %s damaged",
                field(cache, "root").empty() ? "memory only" : field(cache, "root").c_str(),
                field(cache, "problem").empty() ? ", healthy" : ": ", field(cache, "problem").c_str(),
                field(cache, "entries").c_str(), bytes_text(cache.at("bytes").get<double>()).c_str(),
                field(cache, "damaged").c_str());
    if (cache.contains("free_bytes")) std::printf(", %s free", bytes_text(cache.at("free_bytes").get<double>()).c_str());
    std::printf("\n");
    for (const auto& bundle : all.at("bundles"))
        std::printf("bundle       %s, %s\n", field(bundle, "path").c_str(),
                    field(bundle, "problem").empty() ? (field(bundle, "kernels") + " kernels").c_str()
                                                     : ("not used: " + field(bundle, "problem")).c_str());
    const auto& tuned = all.at("tuning");
    std::printf("tuning       %s\n             kernels %s, epoch %s\n", field(tuned, "records").c_str(),
                field(tuned, "code").c_str(), field(tuned, "epoch").c_str());
    for (const env::Variable& variable : env::variables())
        if (const auto set = env::get(variable.name)) std::printf("set          %s=%s\n", variable.name, set->c_str());
}

}  // namespace

void add_doctor(CLI::App& app, Action& action) {
    struct Options {
        bool json = false;
        std::string cache;
    };
    auto options = std::make_shared<Options>();
    CLI::App* sub = app.add_subcommand(
        "doctor", "what is found here: driver, devices, NVRTC, C++ compiler, cache; exit code 3 if nothing can run");
    sub->add_flag("--json", options->json, "for machines");
    sub->add_option("--cache-dir", options->cache, "kernel cache");
    sub->callback([options, &action] {
        action = [options] {
            const nlohmann::json all = {{"version", SAPWOOD_VERSION},
                                        {"cuda", driver()},
                                        {"nvrtc", nvrtc()},
                                        {"host", host_compiler()},
                                        {"cache", cache(options->cache)},
                                        {"bundles", bundles()},
                                        {"tuning", tuning(options->cache)}};
            if (options->json) {
                std::printf("%s\n", all.dump(2).c_str());
            } else {
                print(all);
            }
            const bool runs = !all["cuda"]["devices"].empty() || !all["host"]["path"].get<std::string>().empty();
            return runs ? kOk : kNotPossible;
        };
    });
}

}  // namespace sapwood::tool
