// SPDX-License-Identifier: Apache-2.0
#include "engine/tuning.h"

#include "base/env.h"
#include "base/error.h"
#include "base/log.h"
#include "cuda/sm_table.h"
#include "engine/cuda_measurer.h"
#include "plan/packed_tiles.h"
#include "plan/tiles.h"
#include "sapwood/tune.h"
#include "tune/candidates.h"
#include "tune/config_fields.h"
#include "tune/packed_candidates.h"
#include "tune/search.h"

namespace sapwood {
namespace {

bool leaves_kernel_open(const DecodeConfig& config) {
    for (const tune::ConfigField& field : tune::config_fields())
        if (field.in_kernel && field.get(config) == 0) return true;
    return false;
}

}  // namespace

tune::DeviceFacts facts_of(const TargetSetup& setup) {
    const cuda::DeviceInfo info = setup.device    ? setup.device->info()
                                  : setup.is_host ? cuda::DeviceInfo{.name = "host"}
                                                  : cuda::offline_device(setup.target);
    return {.limits = setup.limits,
            .name = info.name,
            .max_threads_sm = info.max_threads_per_sm,
            .l2_bytes = info.l2_bytes,
            .memory_bytes = info.memory_bytes,
            .cuda_driver = info.driver_version};
}

Tuning::Tuning(const EngineOptions& options, const TargetSetup& setup, const std::filesystem::path& cache_root,
               const std::map<std::string, std::vector<std::byte>>& attachments) {
    mode_ = !options.tune.empty() ? options.tune : env::get("SAPWOOD_TUNE").value_or("read");
    if (mode_ != "off" && mode_ != "read")
        raise(ErrorCode::kInvalidArgument,
              "tuning mode \"" + mode_ + "\" (EngineOptions::tune or SAPWOOD_TUNE) is not off or read");
    // The host target runs what a GPU would, slowly; what is fast on a GPU is no question there.
    if (mode_ == "off" || setup.is_host) return;
    directory_ = options.tune_dir;
    if (directory_.empty()) directory_ = env::get("SAPWOOD_TUNE_DIR").value_or("");
    if (directory_.empty() && !cache_root.empty()) directory_ = cache_root / "v1" / "tune";
    std::vector<tune::ShippedIndex> shipped;
    for (const auto& [name, bytes] : attachments) {
        if (name.ends_with("index.json"))
            shipped.push_back({"bundled " + name, std::string(reinterpret_cast<const char*>(bytes.data()), bytes.size())});
    }
    auto database = std::make_unique<tune::Database>(facts_of(setup), directory_, /*with_embedded=*/true, shipped);
    for (const std::string& fault : database->faults())
        log::warning_once(fault, "tuning record left out: " + fault + "; remove it, or tune again");
    if (!database->other_driver().empty()) log::warning_once("tune-driver", database->other_driver());
    if (database->size() > 0) database_ = std::move(database);
}

TuneMatch Tuning::count(const tune::Lookup& lookup) {
    switch (lookup.match) {
        case TuneMatch::exact:
            ++exact_;
            break;
        case TuneMatch::near_bucket:
            ++near_;
            break;
        case TuneMatch::other_gpu:
            ++other_gpu_;
            break;
        default:
            ++fallback_;
    }
    if (!lookup.rejected.empty()) {
        ++rejected_;
        log::warning_once(lookup.rejected, "a tuned configuration cannot run here and is left aside for the default: " +
                                               lookup.rejected + "; tune again for this device");
    }
    return lookup.match;
}

DecodeConfig Tuning::choose(const DecodeProblem& problem, const ForestOrder& order, const DecodeConfig& config,
                            const Limits& limits, TuneMatch& match) {
    if (leaves_kernel_open(config) && mode_ != "off") {
        tune::Lookup lookup;
        if (database_) lookup = database_->find(tune::bucket_of(problem, tune::sizes_of(problem, order)), problem, config);
        match = count(lookup);
        if (match != TuneMatch::fallback) return lookup.config;
    }
    return choose_config(problem, order, config, limits);
}

PackedConfig Tuning::choose(const tune::PackedPass& pass, const tune::Sizes& sizes, const PackedConfig& config, TuneMatch& match) {
    if (mode_ == "off" || !leaves_kernel_open(tune::as_decode(config))) return config;
    // Records are of the heads that a forward plan takes by itself.
    if (pass.family() == Family::packed_forward && config.heads != 0) return config;
    tune::Lookup lookup;
    if (database_)
        lookup = database_->find(tune::bucket_of(pass.problem(), sizes, pass.family()), pass.problem(), pass.as_decode(config));
    match = count(lookup);
    if (match == TuneMatch::fallback) return config;
    PackedConfig chosen = pass.as_packed(lookup.config);
    if (config.heads != 0) chosen.heads = config.heads;
    return chosen;
}

std::unique_ptr<PackedPlan::Impl> Tuning::plan(const PackedProblem& asked, const Pack& pack, const PackedConfig& config,
                                               const Limits& limits) {
    const PackedProblem problem = complete(asked);
    TuneMatch match = TuneMatch::none;
    const PackedConfig chosen = choose({Family::packed_forward, problem}, tune::sizes_of(problem, pack), config, match);
    auto plan = make_packed_plan(problem, pack, chosen, limits);
    plan->info.tuned = match;
    return plan;
}

std::unique_ptr<PackedBackwardPlan::Impl> Tuning::plan_backward(const PackedProblem& asked, const Pack& pack,
                                                                const PackedBackwardOptions& options, const Limits& limits) {
    const PackedProblem problem = complete(asked);
    TuneMatch match = TuneMatch::none;
    PackedBackwardOptions chosen = options;
    chosen.config = choose({Family::packed_backward, problem}, tune::sizes_of(problem, pack), options.config, match);
    if (options.deterministic) chosen.config.heads = options.config.heads;
    auto plan = make_backward_plan(problem, pack, chosen, limits);
    plan->info.tuned = match;
    return plan;
}

std::unique_ptr<DecodePlan::Impl> Tuning::plan(const DecodeProblem& asked, const Forest& forest, const DecodeConfig& config,
                                               const DecodeLimits& room, const Limits& limits) {
    const ForestOrder order = order_of(forest);
    const DecodeProblem problem = complete(asked, order);
    TuneMatch match = TuneMatch::none;
    const DecodeConfig chosen = choose(problem, order, config, limits, match);
    auto plan = make_decode_plan(problem, forest, order, chosen, room, limits);
    plan->tuned = match;
    return plan;
}

void Tuning::count_into(EngineStats& stats) const {
    stats.tune_exact = exact_, stats.tune_near = near_, stats.tune_other_gpu = other_gpu_;
    stats.tune_default = fallback_, stats.tune_rejected = rejected_;
}

std::string Tuning::describe() const {
    if (!database_) return mode_ == "off" ? "off" : "no records" + (directory_.empty() ? "" : " in " + directory_.string());
    return std::to_string(database_->size()) + " buckets, digest " + database_->digest();
}

TuneReport tune_decode(Engine& engine, const DecodeProblem& problem, const Forest& forest, std::span<const DecodeTensors> sets,
                       const TuneOptions& options) {
    const TargetSetup& setup = setup_of(engine);
    if (!setup.device)
        raise(ErrorCode::kUnsupportedDevice, "tuning measures, and " + setup.target +
                                                 " has no device here; `sapwood tune --target " + setup.target +
                                                 "` prunes and ranks without one");
    const tune::DeviceFacts device = facts_of(setup);
    const ForestOrder order = order_of(forest);
    const DecodeProblem completed = complete(problem, order);
    CudaMeasurer measurer(setup.device, decode_subject(engine, completed, forest, sets), options.policy);
    TuneReport report =
        tune::search(tune::find_candidates(completed, forest, order, device, options, {}), measurer, device, options);
    report.bucket = tune::bucket_of(completed, tune::sizes_of(completed, order)).to_string();
    return report;
}

}  // namespace sapwood
