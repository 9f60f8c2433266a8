// SPDX-License-Identifier: Apache-2.0
#include "kernel_set.h"

#include <fstream>
#include <set>

#include "engine/engine_config.h"
#include "kernel/key_text.h"

namespace sapwood::tool {

void KernelSet::add_options(CLI::App& app) {
    app.add_option("--engine-config", config_, "what an engine serves (JSON, like tools/examples/llama.json)")
        ->check(CLI::ExistingFile);
    app.add_option("--from-trace", trace_, "a trace that SAPWOOD_TRACE recorded")->check(CLI::ExistingFile);
    app.add_option("--keys", keys_, "a file of kernel keys, one a line (`warm --list` prints some)")->check(CLI::ExistingFile);
    app.add_option("--arch", archs_, "targets, as 80,90a,host (default: those that the file names)")->delimiter(',');
}

std::vector<std::string> KernelSet::targets() const {
    std::vector<std::string> targets;
    for (const std::string& arch : archs_) targets.push_back(arch == "host" || arch.starts_with("sm_") ? arch : "sm_" + arch);
    return targets;
}

std::map<std::string, KernelSet::Target> KernelSet::resolve(const EngineOptions& options) const {
    std::optional<EngineConfig> config;
    std::vector<TraceProblem> trace;
    std::vector<TracedPack> packs;
    std::vector<std::string> keys;
    std::set<std::string> wanted;
    if (!config_.empty()) {
        config = read_engine_config(config_);
        wanted.insert(config->targets.begin(), config->targets.end());
    }
    if (!trace_.empty()) {
        trace = read_trace(trace_);
        packs = read_traced_packs(trace_);
        for (const TraceProblem& record : trace) wanted.insert(record.target);
        for (const TracedPack& record : packs) wanted.insert(record.target);
    }
    if (!keys_.empty()) {
        std::ifstream in(keys_);
        for (std::string line; std::getline(in, line);) {
            if (line.empty() || line[0] == '#') continue;
            keys.push_back(line.substr(0, line.find_first_of(" \t")));
            wanted.insert(parse_key(keys.back()).target.data());
        }
    }
    if (const auto given = targets(); !given.empty()) wanted = {given.begin(), given.end()};
    if (wanted.empty()) throw Stop{kUsage, "no target is named; add for example --arch 90a"};

    std::map<std::string, Target> all;
    for (const std::string& name : wanted) {
        EngineOptions its = options;
        its.target = name;
        its.compile_only = true;
        Target& target = all[name];
        target.engine = std::make_unique<Engine>(its);
        const auto take = [&](KeyList found) {
            target.keys.insert(target.keys.end(), found.keys.begin(), found.keys.end());
            target.faults.insert(target.faults.end(), found.faults.begin(), found.faults.end());
            target.plans += found.plans;
        };
        if (config) take(keys_of(*target.engine, *config));
        if (!trace.empty()) take(keys_of(*target.engine, trace));
        if (!packs.empty()) take(keys_of(*target.engine, packs));
        for (const std::string& key : keys)
            if (key.ends_with("/" + name)) target.keys.push_back(key);
        std::sort(target.keys.begin(), target.keys.end());
        target.keys.erase(std::unique(target.keys.begin(), target.keys.end()), target.keys.end());
    }
    return all;
}

}  // namespace sapwood::tool
