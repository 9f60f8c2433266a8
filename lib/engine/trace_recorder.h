// SPDX-License-Identifier: Apache-2.0
// Collects a trace while engines run. A launch costs one addition; only a plan whose sizes are new takes a lock and looks at its
// forest.
#pragma once

#include <array>
#include <atomic>
#include <filesystem>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <tuple>

#include "base/process.h"
#include "engine/trace.h"
#include "engine/traced_pack.h"
#include "plan/decode_plan.h"

namespace sapwood {

struct TraceRecord {
    TraceProblem problem;  // but for the counts
    std::array<int, 3> bucket;
    std::atomic<std::uint64_t> planned{0}, updated{0}, launched{0};
};

struct PackTraceRecord {
    TracedPack pack;  // but for the counts
    std::atomic<std::uint64_t> planned{0}, launched{0};
};

class TraceRecorder {
public:
    /// The recorder of this file: engines of one process share it. "%p" in the path becomes the process id.
    static std::shared_ptr<TraceRecorder> of(const std::filesystem::path& path);

    explicit TraceRecorder(std::filesystem::path path) : path_(std::move(path)) {}  // see of()
    const std::filesystem::path& path() const noexcept { return path_; }

    // In a forked child nothing is recorded or written: the trace is the parent's, and so is whatever holds the lock.

    /// Null once there are too many distinct ones; those are only counted.
    TraceRecord* planned(const DecodePlan::Impl& plan, const Forest& forest);
    TraceRecord* updated(const DecodePlan::Impl& plan, const Forest& forest, TraceRecord* last);
    /// `pack` is of a plan just made, counts aside. Null as above.
    PackTraceRecord* planned(const TracedPack& pack);
    /// Atomically replaces the file. Empty, or why not.
    std::string flush();

private:
    TraceRecord* find(const DecodePlan::Impl& plan, const Forest& forest, const std::array<int, 3>& bucket);

    bool mine() const noexcept { return process_generation() == generation_; }

    const std::uint64_t generation_ = process_generation();
    std::filesystem::path path_;
    std::mutex mutex_;
    std::map<std::tuple<std::string, float, float, std::int32_t, std::array<int, 3>>, std::unique_ptr<TraceRecord>> records_;
    std::map<std::tuple<std::string, float, float, std::int32_t, std::int32_t, std::array<int, 4>>,
             std::unique_ptr<PackTraceRecord>>
        packs_;
    std::uint64_t dropped_ = 0;
};

}  // namespace sapwood
