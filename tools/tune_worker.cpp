// SPDX-License-Identifier: Apache-2.0
// The worker of `sapwood tune`: one process, one GPU. Lines of JSON in (jobs), lines of JSON out (what it is about to do, results),
// so that the parent knows what was at work when a worker dies.
#include <fcntl.h>
#include <unistd.h>

#include <csignal>
#include <iostream>
#include <map>
#include <thread>

#include "compile_ahead.h"
#include "cuda/nvml.h"
#include "cuda/nvrtc.h"
#include "engine/tuning.h"
#include "tune/database.h"
#include "tune/epoch.h"
#include "tune/record_store.h"
#include "tune/search.h"
#include "tune_case.h"

namespace sapwood::tool {
namespace {

/// The results go to the descriptor that was standard output; what others print there goes to standard error.
class Channel {
public:
    Channel() : out_(fcntl(STDOUT_FILENO, F_DUPFD_CLOEXEC, 3)) { dup2(STDERR_FILENO, STDOUT_FILENO); }
    void send(const nlohmann::json& line) {
        const std::string text = line.dump() + "\n";
        for (std::size_t at = 0; at < text.size();) {
            const ssize_t wrote = write(out_, text.data() + at, text.size() - at);
            if (wrote <= 0) _exit(kCheckFailed);  // the parent is gone: nobody wants the result
            at += static_cast<std::size_t>(wrote);
        }
    }

private:
    int out_;
};

std::string utc_now() {
    char text[32];
    const std::time_t now = std::time(nullptr);
    std::tm parts{};
    gmtime_r(&now, &parts);
    std::strftime(text, sizeof text, "%Y-%m-%dT%H:%M:%SZ", &parts);
    return text;
}

tune::Provenance provenance_of(const tune::DeviceFacts& device, const DevicePtr& gpu) {
    const cuda::DeviceInfo info = gpu ? gpu->info() : cuda::DeviceInfo{};
    const cuda::BoardState board = gpu ? cuda::board_state(info.ordinal, info.name) : cuda::BoardState{};
    return {.gpu = device.name,
            .uuid = board.uuid,
            .driver = board.driver.empty() ? "CUDA " + std::to_string(info.driver_version / 1000) + "." +
                                                 std::to_string(info.driver_version % 1000 / 10)
                                           : board.driver,
            .nvrtc = cuda::Nvrtc().identity(),
            .throttle = board.throttle,
            .tool = SAPWOOD_VERSION,
            .code = tune::code_digest(),
            .date = utc_now(),
            .sm = device.limits.sm,
            .sms = device.limits.sms,
            .sm_mhz = board.sm_mhz,
            .memory_mhz = board.memory_mhz,
            .power_limit_w = board.power_limit_w,
            .cuda_driver = info.driver_version};
}

/// Times from the cost model with a little noise: everything but the measuring can be tested without a GPU.
class Simulated : public tune::Measurer {
public:
    Simulated(const TuneArgs& args, const tune::CandidateSet& set) : crash_(args.simulate_crash) {
        for (const TuneCandidate& c : set.all) cost_.emplace_back(c.config, c.cost_us);
    }
    Built build(const DecodeConfig&) override { return {.registers = 128, .spill_bytes = 0, .failure = {}}; }
    std::string check(const DecodeConfig& config) override {
        if (!crash_.empty() && tune::agrees(config, parse_config(crash_))) std::raise(SIGKILL);
        return {};
    }
    double sample(const DecodeConfig& config) override {
        for (const auto& [known, cost] : cost_)
            if (tune::same_config(known, config)) return cost * (1 + 0.002 * static_cast<double>(++draws_ % 7));
        return 0;
    }

private:
    std::string crash_;
    std::vector<std::pair<DecodeConfig, double>> cost_;
    unsigned draws_ = 0;
};

class Worker {
public:
    Worker(const TuneArgs& args, std::vector<TuneJob> jobs)
        : args_(args),
          jobs_(std::move(jobs)),
          engine_({.target = args.target, .cache_dir = args.cache, .tune = "off"}),
          device_(device_of(args.target, engine_.has_device())),
          facts_(facts(args, engine_)),
          policy_(),
          environment_(tune::environment_of(facts_, policy_)),
          against_(facts_, args.against, args.against.empty()),
          compiling_(args, facts_, jobs_, args.simulate ? 0 : std::max(1u, std::thread::hardware_concurrency() - 1)) {}

    int run() {
        for (const tune::Record& record : tune::RecordStore(args_.db).records(environment_))
            bests_.emplace(record.bucket, record.best(environment_.sm, policy_));
        channel_.send({{"event", "hello"}, {"environment", tune::to_json(environment_)}, {"gpu", facts_.name}});
        for (std::string line; std::getline(std::cin, line);) {
            const auto asked = nlohmann::json::parse(line);
            const auto index = asked.at("job").get<std::size_t>();
            try {
                if (!tune(index, asked)) return kOk;  // the device is lost: a fresh process goes on
            } catch (const std::exception& error) {
                channel_.send({{"event", "failed"}, {"job", index}, {"error", error.what()}});
            }
        }
        return kOk;
    }

private:
    static tune::DeviceFacts facts(const TuneArgs& args, Engine& engine) {
        tune::DeviceFacts facts = facts_of(setup_of(engine));
        if (args.simulate) facts.name = "simulated";
        return facts;
    }

    std::vector<TuneCandidate> known(const TuneJob& job, const nlohmann::json& asked) {
        std::vector<TuneCandidate> known;
        if (!args_.fresh) {
            if (const auto record = tune::RecordStore(args_.db).load(environment_, job.bucket))
                known = tune::known_of(*record, job.sizes);
            // A run that was cut short compared nothing to the end: its times are measured again.
            if (!finished(known)) std::erase_if(known, [](const TuneCandidate& c) { return c.measured(); });
        }
        // What has just killed a worker, whatever else is done again.
        for (const auto& each : asked.at("crashed")) {
            TuneCandidate crashed = {.config = parse_config(each.at("config").get<std::string>()), .status = "crash"};
            crashed.reason = each.at("reason").get<std::string>();
            known.insert(known.begin(), crashed);
        }
        return known;
    }

    bool finished(const std::vector<TuneCandidate>& known) const {
        return std::any_of(known.begin(), known.end(), [&](const TuneCandidate& c) { return c.samples >= policy_.rounds[2]; });
    }

    /// The bests of neighbouring buckets, of records of older kernels, and what the choices are compared with.
    std::vector<DecodeConfig> wanted(const TuneJob& job, const tune::Lookup& compared, bool done) {
        std::vector<DecodeConfig> wanted;
        if (compared.match != TuneMatch::fallback) wanted.push_back(compared.config);
        if (done) return wanted;  // a problem that was tuned to the end is not taken up again for a neighbour's sake
        int nearest = tune::kNearest + 1;
        const DecodeConfig* near = nullptr;
        for (const auto& [bucket, best] : bests_)
            if (tune::same_code(bucket, job.bucket) && tune::distance(bucket, job.bucket) < nearest)
                nearest = tune::distance(bucket, job.bucket), near = &best;
        if (near != nullptr) wanted.push_back(*near);
        const tune::RecordStore store(args_.db);
        // What did well on another problem of the bucket: a configuration for all of them must have been measured on each.
        if (const auto record = store.load(environment_, job.bucket))
            for (const tune::Measured& other : record->measured)
                for (const tune::Timing& timing : other.timings)
                    if (timing.candidate.measured() && timing.candidate.samples >= policy_.rounds[2])
                        wanted.push_back(timing.candidate.config);
        for (const tune::Environment& old : store.environments())
            if (old.same_device(environment_) && old.code != environment_.code)
                if (const auto record = store.load(old, job.bucket)) wanted.push_back(record->best(old.sm, policy_));
        return wanted;
    }

    bool tune(std::size_t index, const nlohmann::json& asked) {
        const TuneJob& job = jobs_.at(index);
        const auto tell = [&](const TuneCandidate& candidate, int round) {
            channel_.send({{"event", "work"}, {"config", tune::config_text(candidate.config)}, {"round", round}});
        };
        const tune::Lookup compared = look_up(against_, job);
        TuneOptions options = tune_options(args_);
        options.progress = tell;
        options.seconds = asked.value("seconds", 0.0);
        TuneCase which(job);
        const auto already = known(job, asked);
        tune::CandidateSet set = which.candidates(facts_, options, wanted(job, compared, finished(already)));
        if (device_ && which.bytes() > 0.8 * static_cast<double>(facts_.memory_bytes)) {
            channel_.send({{"event", "skipped"}, {"job", index}});
            return true;
        }

        TuneReport report;
        const bool fresh = tune::needs_measuring(set, already);
        if (fresh) channel_.send({{"event", "work"}, {"config", ""}, {"round", 0}});  // making tensors: no candidate's fault
        if (fresh && !args_.simulate) {
            const auto measurer = which.measurer(engine_, device_, policy_);
            report = tune::search(std::move(set), *measurer, facts_, options, already);
        } else {  // where everything is known, nothing is asked of the measurer
            Simulated measurer(args_, set);
            report = tune::search(std::move(set), measurer, facts_, options, already);
        }
        tune::Record record = {
            .bucket = job.bucket, .policy = policy_.name, .code = environment_.code, .epoch = environment_.epoch};
        tune::add(record, job.title, job.sizes, report, provenance_of(facts_, device_));
        nlohmann::json line = {{"event", "done"},
                               {"job", index},
                               {"fresh", fresh},
                               {"complete", report.complete},
                               {"record", tune::to_json(record, facts_.limits.sm, policy_)},
                               {"list", report.list},
                               {"floor_us", report.floor_us},
                               {"model_choice", tune::config_text(report.model_choice)},
                               {"failure", report.failure}};
        if (compared.match != TuneMatch::fallback)
            line["compared"] = tune::config_text(compared.config), line["compared_match"] = tune_match_name(compared.match);
        channel_.send(line);
        bests_[job.bucket] = report.best;
        return report.failure.empty();
    }

    const TuneArgs& args_;
    std::vector<TuneJob> jobs_;
    Channel channel_;
    Engine engine_;
    DevicePtr device_;
    tune::DeviceFacts facts_;
    TunePolicy policy_;
    tune::Environment environment_;
    tune::Database against_;
    std::map<tune::Bucket, DecodeConfig> bests_;  // of the database, and of what has been tuned here since
    CompileAhead compiling_;
};

}  // namespace

int tune_worker(const TuneArgs& args) {
    Worker worker(args, tune_jobs(args).jobs);
    return worker.run();
}

}  // namespace sapwood::tool
