// SPDX-License-Identifier: Apache-2.0
#include "worker_process.h"

#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

extern char** environ;

namespace sapwood::tool {
namespace {

std::vector<std::string> worker_arguments(const TuneArgs& args, int device) {
    std::vector<std::string> argv = {"sapwood", "tune", "--worker", "--target", text("cuda:%d", device), "--db", args.db};
    const auto add = [&](const char* name, const std::string& value) {
        if (!value.empty()) argv.insert(argv.end(), {name, value});
    };
    if (!args.workloads.empty()) argv.push_back("--workloads");
    argv.insert(argv.end(), args.workloads.begin(), args.workloads.end());
    add("--trace", args.trace), add("--against", args.against), add("--shard", args.shard), add("--cache-dir", args.cache);
    add("--config", args.fix), add("--case", args.filter.name), add("--heads", args.filter.heads),
        add("--layout", args.filter.layout);
    add("--dtype", args.filter.dtype), add("--kv-dtype", args.filter.kv_dtype), add("--set", args.filter.set),
        add("--passes", args.passes);
    add("--top", std::to_string(args.top_k)), add("--per-bucket", std::to_string(args.per_bucket));
    if (args.filter.page_size >= 0) add("--page", std::to_string(args.filter.page_size));
    if (args.filter.head_dim > 0) add("--head-dim", std::to_string(args.filter.head_dim));
    if (args.filter.limit > 0) add("--limit", std::to_string(args.filter.limit));
    if (args.filter.runs) argv.push_back("--runs");
    if (args.simulate) argv[4] = "sm_90a", argv.push_back("--simulate"), add("--simulate-crash", args.simulate_crash);
    if (args.exhaustive) argv.push_back("--exhaustive");
    if (args.fresh) argv.push_back("--fresh");
    return argv;
}

}  // namespace

WorkerProcess::WorkerProcess(const TuneArgs& args, int device) : device_(device) {
    int in[2], out[2];
    if (pipe2(in, O_CLOEXEC) != 0 || pipe2(out, O_CLOEXEC) != 0)
        throw Stop{kNotPossible, std::string("no pipe for a worker: ") + std::strerror(errno)};
    std::vector<std::string> arguments = worker_arguments(args, device);
    std::vector<char*> argv;
    for (std::string& argument : arguments) argv.push_back(argument.data());
    argv.push_back(nullptr);
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_adddup2(&actions, in[0], STDIN_FILENO);
    posix_spawn_file_actions_adddup2(&actions, out[1], STDOUT_FILENO);
    const int failed = posix_spawn(&pid_, "/proc/self/exe", &actions, nullptr, argv.data(), environ);
    posix_spawn_file_actions_destroy(&actions);
    close(in[0]), close(out[1]);
    to_ = in[1], from_ = out[0];
    if (failed != 0) throw Stop{kNotPossible, std::string("a worker did not start: ") + std::strerror(failed)};
    heard_ms = now_ms();
}

WorkerProcess::~WorkerProcess() {
    finish();
    close(from_);
    if (pid_ > 0) waitpid(pid_, nullptr, 0);
}

void WorkerProcess::send(const nlohmann::json& line) {
    const std::string text_of = line.dump() + "\n";
    if (write(to_, text_of.data(), text_of.size()) < 0) return;  // it is dead: the read side says so
}

void WorkerProcess::finish() {
    if (to_ >= 0) close(to_);
    to_ = -1;
    ready = false;
}

bool WorkerProcess::receive(std::vector<std::string>& lines) {
    char buffer[65536];
    const ssize_t got = read(from_, buffer, sizeof buffer);
    if (got <= 0) return got < 0 && errno == EINTR;
    heard_ms = now_ms();
    partial_.append(buffer, static_cast<std::size_t>(got));
    for (std::size_t end; (end = partial_.find('\n')) != std::string::npos;) {
        lines.push_back(partial_.substr(0, end));
        partial_.erase(0, end + 1);
    }
    return true;
}

void WorkerProcess::kill_it() { kill(pid_, SIGKILL); }

std::string WorkerProcess::end() {
    int status = 0;
    waitpid(pid_, &status, 0);
    pid_ = -1;
    if (WIFSIGNALED(status)) return text("killed by signal %d (%s)", WTERMSIG(status), strsignal(WTERMSIG(status)));
    return text("ended with code %d", WEXITSTATUS(status));
}

}  // namespace sapwood::tool
