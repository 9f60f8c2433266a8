// SPDX-License-Identifier: Apache-2.0
// Which kernels `warm` and `pack` are about: of an engine configuration, a trace, or a list of keys, for some targets.
#pragma once

#include <map>
#include <memory>

#include "common.h"

namespace sapwood::tool {

class KernelSet {
public:
    void add_options(CLI::App& app);
    bool given() const { return !config_.empty() || !trace_.empty() || !keys_.empty(); }
    /// "80,90a,host" as "sm_80", "sm_90a", "host".
    std::vector<std::string> targets() const;

    struct Target {
        std::unique_ptr<Engine> engine;  // that leaves a GPU alone
        std::vector<std::string> keys, faults;
        std::uint64_t plans = 0;
    };
    /// By target. Throws Stop{kUsage} if no target is named anywhere, or a file is not what it should be.
    std::map<std::string, Target> resolve(const EngineOptions& options) const;

private:
    std::string config_, trace_, keys_;
    std::vector<std::string> archs_;
};

}  // namespace sapwood::tool
