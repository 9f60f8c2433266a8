// SPDX-License-Identifier: Apache-2.0
// The parent of `sapwood tune`: gives jobs to one worker process a GPU, writes what comes back, and starts a worker anew when a
// candidate has killed it. It holds no CUDA context itself, so that nothing a candidate does can reach it.
#include <poll.h>
#include <signal.h>

#include <deque>

#include "terminal.h"
#include "tune.h"
#include "tune/config_fields.h"
#include "tune/record_store.h"
#include "tune/search.h"
#include "worker_process.h"

namespace sapwood::tool {
namespace {

constexpr int kMostCrashes = 5;  // of one job, then it is left

struct Job {
    nlohmann::json crashed = nlohmann::json::array();  // {config, reason}
    int crashes = 0;
};

class Parent {
public:
    Parent(const TuneArgs& args, const std::vector<int>& devices)
        : args_(args),
          list_(tune_jobs(args)),
          state_(list_.jobs.size()),
          store_(args.db),
          budget_s_(args.budget.empty() ? 0 : parse_seconds(args.budget)),
          devices_(devices),
          progress_("tune", list_.jobs.size()) {
        for (std::size_t i = 0; i < list_.jobs.size(); ++i) waiting_.push_back(i);
        for (const int device : devices) workers_.push_back(std::make_unique<WorkerProcess>(args, device));
    }

    int run() {
        signal(SIGPIPE, SIG_IGN);
        while (!workers_.empty()) {
            std::vector<pollfd> polled;
            for (const auto& worker : workers_) polled.push_back({.fd = worker->descriptor(), .events = POLLIN, .revents = 0});
            poll(polled.data(), polled.size(), 500);
            for (std::size_t i = 0; i < polled.size(); ++i) {
                if (polled[i].revents != 0 && !listen(*workers_[i])) workers_[i] = after_death(*workers_[i]);
            }
            std::erase(workers_, nullptr);
            for (auto& worker : workers_) {
                if (worker->job && now_ms() - worker->heard_ms > args_.hang_s * 1000) {
                    worker->hung = true;
                    worker->kill_it();
                }
            }
        }
        progress_.clear();
        if (environment_) store_.save_index(*environment_, policy_);
        std::vector<TuneOutcome> outcomes;
        for (TuneOutcome& outcome : outcomes_) {
            if (environment_)
                if (const auto record = store_.load(*environment_, outcome.bucket))
                    outcome.chosen = record->best(environment_->sm, policy_);
            outcomes.push_back(std::move(outcome));
        }
        print_outcomes(args_, outcomes, (now_ms() - start_ms_) / 1000);
        std::FILE* notes = args_.json.to_stdout() ? stderr : stdout;
        std::fprintf(notes,
                     "left out: %zu of equal sizes, %zu beyond %d a bucket, %zu of other shards, %zu that do not fit the device\n",
                     list_.same, list_.crowded, args_.per_bucket, list_.other_shards, too_large_);
        if (!waiting_.empty() || unfinished_ > 0)
            std::fprintf(notes, "%zu not begun and %zu not finished within %s; the same command goes on where this one ended\n",
                         waiting_.size(), unfinished_, args_.budget.empty() ? "this run" : args_.budget.c_str());
        for (const std::string& failure : failures_) std::fprintf(notes, "%s\n", failure.c_str());
        if (!args_.report.empty()) write_report(args_.report, args_, gpu_, outcomes);
        return failures_.empty() ? kOk : kCheckFailed;
    }

private:
    double spent_s() const { return (now_ms() - start_ms_) / 1000; }

    /// Reads what a worker says; false when it says nothing more.
    bool listen(WorkerProcess& worker) {
        std::vector<std::string> lines;
        const bool alive = worker.receive(lines);
        for (const std::string& line : lines) {
            const auto said = nlohmann::json::parse(line);
            const std::string event = said.at("event");
            if (event == "hello") {
                const auto environment = tune::environment_from(said.at("environment").get<std::string>(), nullptr);
                worker.greeted = true;
                if (environment_ && environment && *environment != *environment_) {
                    failures_.push_back(text("device %d is %s, the others %s: tune each kind in a run of its own", worker.device(),
                                             environment->gpu.c_str(), environment_->gpu.c_str()));
                    worker.finish();
                    continue;
                }
                environment_ = environment;
                gpu_ = said.at("gpu");
                worker.ready = true;
            } else if (event == "work") {
                worker.config = said.at("config");
                continue;
            } else if (event == "failed") {
                failures_.push_back(list_.jobs[said.at("job").get<std::size_t>()].title + ": " +
                                    said.at("error").get<std::string>());
                worker.job.reset();
            } else if (event == "skipped") {
                ++too_large_;
                worker.job.reset();
            } else if (event == "done") {
                done(worker, said);
            }
            next(worker);
        }
        return alive;
    }

    void next(WorkerProcess& worker) {
        if (!worker.ready || worker.job) return;
        if (waiting_.empty() || (budget_s_ > 0 && spent_s() > budget_s_)) {
            worker.finish();
            return;
        }
        const std::size_t index = waiting_.front();
        waiting_.pop_front();
        worker.job = index;
        worker.config.clear();
        // Twice an even share of what is left, so that a few large ones may take more than many small ones.
        const double left = budget_s_ - spent_s();
        const double seconds =
            budget_s_ > 0
                ? std::max(1.0, 2 * left * static_cast<double>(devices_.size()) / static_cast<double>(waiting_.size() + 1))
                : 0;
        worker.send({{"job", index}, {"crashed", state_[index].crashed}, {"seconds", std::min(seconds, std::max(1.0, left))}});
        const double rate = finished_ > 0 ? spent_s() / static_cast<double>(finished_) : 0;
        progress_.step(
            finished_,
            list_.jobs[index].title +
                (finished_ > 1 ? text(", about %.0f s left", rate * static_cast<double>(list_.jobs.size() - finished_)) : ""));
    }

    void done(WorkerProcess& worker, const nlohmann::json& said) {
        const std::size_t index = said.at("job");
        const TuneJob& job = list_.jobs[index];
        worker.job.reset();
        std::string fault;
        const auto record = tune::record_from(said.at("record").get<std::string>(), &fault);
        if (!record || !environment_) {
            failures_.push_back(job.title + ": its record cannot be read: " + fault);
            return;
        }
        if (record->bucket != job.bucket) {  // its list of jobs is another than this one's
            failures_.push_back(job.title + ": the worker measured " + record->measured.front().name + "; nothing of it is kept");
            return;
        }
        if (said.at("fresh").get<bool>()) {
            tune::Record joined = store_.load(*environment_, job.bucket).value_or(*record);
            tune::merge(joined, *record, environment_->sm, policy_, nullptr);
            store_.save(*environment_, joined, policy_);
        }
        ++finished_;
        const bool lost = !said.at("failure").get<std::string>().empty();
        if (lost) {  // the worker ends; the job goes on in the next one, without the candidate that did it
            const TuneCandidate* culprit = nullptr;
            for (const tune::Timing& timing : record->measured.front().timings)
                if (timing.candidate.status == "crash") culprit = &timing.candidate;
            if (culprit != nullptr) crashed(index, tune::config_text(culprit->config), culprit->reason);
            --finished_;
            return;
        }
        if (!said.at("complete").get<bool>()) ++unfinished_;
        TuneOutcome outcome;
        outcome.bucket = job.bucket;
        outcome.title = job.title;
        outcome.report.list = said.at("list");
        outcome.report.bucket = job.bucket.to_string();
        outcome.report.floor_us = said.at("floor_us");
        outcome.report.complete = said.at("complete");
        outcome.report.default_config = record->measured.front().default_config;
        outcome.report.model_choice = parse_config(said.at("model_choice"));
        for (const tune::Timing& timing : record->measured.front().timings) outcome.report.candidates.push_back(timing.candidate);
        const int best = tune::choose_best(outcome.report.candidates, policy_);
        outcome.report.best =
            best < 0 ? outcome.report.default_config : outcome.report.candidates[static_cast<std::size_t>(best)].config;
        outcome.chosen = outcome.report.best;
        if (said.contains("compared")) {
            outcome.compared = parse_config(said.at("compared"));
            outcome.compared_match = said.at("compared_match");
        }
        outcomes_.push_back(std::move(outcome));
    }

    void crashed(std::size_t index, const std::string& config, const std::string& reason) {
        Job& state = state_[index];
        ++state.crashes;
        if (!config.empty()) state.crashed.push_back({{"config", config}, {"reason", reason}});
        if (state.crashes >= kMostCrashes) {
            failures_.push_back(list_.jobs[index].title + ": given up after " + std::to_string(state.crashes) +
                                " crashes; the last: " + reason);
            return;
        }
        waiting_.push_front(index);
    }

    /// The candidate at work has the blame. A new worker takes its place while there is something to do.
    std::unique_ptr<WorkerProcess> after_death(WorkerProcess& worker) {
        const int device = worker.device();
        const std::optional<std::size_t> job = worker.job;
        std::string how = worker.end();
        if (worker.hung) how = text("hung: no word for %.0f s", args_.hang_s);
        if (job) {
            progress_.clear();
            std::fprintf(stderr, "tune: worker of device %d %s at %s with %s; going on without it\n", device, how.c_str(),
                         list_.jobs[*job].title.c_str(), worker.config.empty() ? "no candidate" : worker.config.c_str());
            crashed(*job, worker.config, how);
        } else if (!worker.greeted) {
            failures_.push_back(text("the worker of device %d %s before its first job", device, how.c_str()));
            return nullptr;
        }
        if (waiting_.empty() || worker.finished() || (budget_s_ > 0 && spent_s() > budget_s_)) return nullptr;
        return std::make_unique<WorkerProcess>(args_, device);
    }

    const TuneArgs& args_;
    JobList list_;
    std::vector<Job> state_;
    tune::RecordStore store_;
    TunePolicy policy_;
    double budget_s_, start_ms_ = now_ms();
    std::vector<int> devices_;
    Progress progress_;
    std::deque<std::size_t> waiting_;
    std::vector<std::unique_ptr<WorkerProcess>> workers_;
    std::optional<tune::Environment> environment_;
    std::string gpu_;
    std::vector<TuneOutcome> outcomes_;
    std::vector<std::string> failures_;
    std::size_t finished_ = 0, unfinished_ = 0, too_large_ = 0;
};

}  // namespace

int tune_on_devices(const TuneArgs& args, const std::vector<int>& devices) {
    Parent parent(args, devices);
    return parent.run();
}

}  // namespace sapwood::tool
