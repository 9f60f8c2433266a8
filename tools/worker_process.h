// SPDX-License-Identifier: Apache-2.0
// A worker process of `sapwood tune`, with a pipe each way.
#pragma once

#include <sys/types.h>

#include <optional>
#include <string>
#include <vector>

#include "tune.h"

namespace sapwood::tool {

class WorkerProcess {
public:
    /// Starts this program again as the worker of a device; throws Stop{kNotPossible}.
    WorkerProcess(const TuneArgs& args, int device);
    ~WorkerProcess();
    WorkerProcess(const WorkerProcess&) = delete;
    WorkerProcess& operator=(const WorkerProcess&) = delete;

    int descriptor() const { return from_; }
    int device() const { return device_; }
    void send(const nlohmann::json& line);
    /// No more jobs: the worker sees the end of its input, and ends.
    void finish();
    bool finished() const { return to_ < 0; }
    /// Complete lines that have come; false at the end of the stream.
    bool receive(std::vector<std::string>& lines);
    void kill_it();
    /// Waits, and says how it ended, for people.
    std::string end();

    double heard_ms = 0;
    std::string config;  // at work
    std::optional<std::size_t> job;
    bool ready = false;    // for a job
    bool hung = false;     // and was killed for it
    bool greeted = false;  // has said what it runs on

private:
    int device_;
    pid_t pid_ = -1;
    int to_ = -1, from_ = -1;
    std::string partial_;
};

}  // namespace sapwood::tool
