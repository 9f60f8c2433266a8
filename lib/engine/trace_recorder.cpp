// SPDX-License-Identifier: Apache-2.0
#include "engine/trace_recorder.h"

#include <unistd.h>

#include <span>

#include "base/log.h"
#include "base/process.h"
#include "base/publish.h"

namespace sapwood {
namespace {

constexpr std::size_t kMaxRecords = 4096;

struct Sizes {
    std::int64_t requests, tokens, path_tokens;
    std::array<int, 3> bucket() const { return {trace_bucket(requests), trace_bucket(tokens), trace_bucket(path_tokens)}; }
};

/// From what the planner has counted anyway.
Sizes sizes_of(const DecodePlan::Impl& plan) {
    const DecodeProblem& problem = plan.problem;
    const DecodePlanInfo& info = plan.info;
    const double dims = problem.head_dim + problem.head_dim_v;
    const double row = dims * static_cast<double>(dtype_bytes(problem.dtype)) * problem.q_heads;
    const double token = dims * static_cast<double>(kv_dtype_bytes(problem.kv_dtype, problem.dtype)) * problem.kv_heads;
    const double kv = static_cast<double>(info.hbm_bytes) - static_cast<double>(info.requests) * row;
    return {info.requests, static_cast<std::int64_t>(kv / token) + plan.grown_tokens,
            static_cast<std::int64_t>(info.flops / (2 * dims * problem.q_heads))};
}

struct Open {
    std::mutex mutex;
    std::map<std::filesystem::path, std::weak_ptr<TraceRecorder>> recorders;
};

}  // namespace

std::shared_ptr<TraceRecorder> TraceRecorder::of(const std::filesystem::path& path) {
    static auto* const open = new PerProcess<Open>([] { return std::make_unique<Open>(); });
    std::string name = path.string();
    if (const std::size_t at = name.find("%p"); at != std::string::npos) name.replace(at, 2, std::to_string(::getpid()));
    std::error_code error;
    const std::filesystem::path absolute = std::filesystem::absolute(name, error);
    Open& all = open->get();
    std::lock_guard lock(all.mutex);
    auto recorder = all.recorders[absolute].lock();
    if (recorder == nullptr)
        all.recorders[absolute] = recorder = std::make_shared<TraceRecorder>(error ? std::filesystem::path(name) : absolute);
    return recorder;
}

TraceRecord* TraceRecorder::find(const DecodePlan::Impl& plan, const Forest& forest, const std::array<int, 3>& bucket) {
    const DecodeProblem& problem = plan.problem;
    std::lock_guard lock(mutex_);
    const std::tuple id(plan.key, problem.scale, problem.softcap, problem.kv_heads, bucket);
    if (const auto found = records_.find(id); found != records_.end()) return found->second.get();
    if (records_.size() >= kMaxRecords) {
        ++dropped_;
        return nullptr;
    }
    auto record = std::make_unique<TraceRecord>();
    const Sizes sizes = sizes_of(plan);
    record->bucket = bucket;
    record->problem = {.problem = problem,
                       .config = plan.config,
                       .target = plan.limits.target,
                       .key = plan.key,
                       .requests = sizes.requests,
                       .tokens = sizes.tokens,
                       .path_tokens = sizes.path_tokens};
    record->problem.tree = trace_tree(forest, &record->problem.pathless);
    return records_.emplace(id, std::move(record)).first->second.get();
}

TraceRecord* TraceRecorder::planned(const DecodePlan::Impl& plan, const Forest& forest) {
    if (!mine()) return nullptr;
    TraceRecord* record = find(plan, forest, sizes_of(plan).bucket());
    if (record != nullptr) record->planned.fetch_add(1, std::memory_order_relaxed);
    return record;
}

TraceRecord* TraceRecorder::updated(const DecodePlan::Impl& plan, const Forest& forest, TraceRecord* last) {
    if (!mine()) return nullptr;
    const std::array<int, 3> bucket = sizes_of(plan).bucket();
    TraceRecord* record =
        last != nullptr && last->bucket == bucket && last->problem.key == plan.key ? last : find(plan, forest, bucket);
    if (record != nullptr) record->updated.fetch_add(1, std::memory_order_relaxed);
    return record;
}

PackTraceRecord* TraceRecorder::planned(const TracedPack& pack) {
    if (!mine()) return nullptr;
    const PackedProblem& problem = pack.problem;
    const std::array sizes = {trace_bucket(pack.rows), trace_bucket(pack.tokens), trace_bucket(pack.visible_pairs),
                              trace_bucket(pack.runs)};
    std::string kernels;  // a forward kernel and those of the backward pass begin differently
    for (const std::string& key : pack.keys) kernels += key + '\n';
    const std::lock_guard lock(mutex_);
    const std::tuple id(kernels, problem.scale, problem.softcap, problem.q_heads, problem.kv_heads, sizes);
    auto found = packs_.find(id);
    if (found == packs_.end()) {
        if (packs_.size() >= kMaxRecords) {
            ++dropped_;
            return nullptr;
        }
        found = packs_.emplace(id, std::make_unique<PackTraceRecord>()).first;
        found->second->pack = pack;
    }
    found->second->planned.fetch_add(1, std::memory_order_relaxed);
    return found->second.get();
}

std::string TraceRecorder::flush() {
    if (!mine()) return {};
    std::vector<TraceProblem> problems;
    std::string packs;
    std::uint64_t dropped = 0;
    {
        std::lock_guard lock(mutex_);
        dropped = dropped_;
        for (const auto& [id, record] : records_) {
            TraceProblem problem = record->problem;
            problem.planned = record->planned, problem.updated = record->updated, problem.launched = record->launched;
            problems.push_back(std::move(problem));
        }
        for (const auto& [id, record] : packs_) {
            TracedPack pack = record->pack;
            pack.planned = record->planned, pack.launched = record->launched;
            packs += trace_line(pack);
        }
    }
    const std::string text = write_trace(problems, dropped) + packs;
    const PublishResult result = replace_file(path_, std::as_bytes(std::span(text)));
    return result ? std::string() : result.text();
}

}  // namespace sapwood
