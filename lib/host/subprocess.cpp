// SPDX-License-Identifier: Apache-2.0
#include "host/subprocess.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <string_view>
#include <system_error>
#include <thread>

#include "base/error.h"

extern char** environ;

namespace sapwood::host {
namespace {

using Clock = std::chrono::steady_clock;
constexpr std::size_t kOutputLimit = 256 * 1024;

/// Search paths that a compiler takes from the environment are in no cache key; messages must be in one language; a preloaded
/// library (a sanitizer's runtime, say) is meant for us.
bool withheld(std::string_view variable) {
    constexpr std::string_view kWithheld[] = {"CPATH",
                                              "C_INCLUDE_PATH",
                                              "CPLUS_INCLUDE_PATH",
                                              "OBJC_INCLUDE_PATH",
                                              "OBJCPLUS_INCLUDE_PATH",
                                              "LIBRARY_PATH",
                                              "LD_RUN_PATH",
                                              "COMPILER_PATH",
                                              "CCC_OVERRIDE_OPTIONS",
                                              "GCC_COMPARE_DEBUG",
                                              "SOURCE_DATE_EPOCH",
                                              "DEPENDENCIES_OUTPUT",
                                              "SUNPRO_DEPENDENCIES",
                                              "LD_PRELOAD",
                                              "LANG",
                                              "LANGUAGE",
                                              "LC_ALL",
                                              "LC_MESSAGES",
                                              "LC_CTYPE",
                                              "TMPDIR"};
    const std::string_view name = variable.substr(0, variable.find('='));
    return std::find(std::begin(kWithheld), std::end(kWithheld), name) != std::end(kWithheld);
}

std::vector<char*> pointers(const std::vector<std::string>& strings) {
    std::vector<char*> result;
    for (const std::string& s : strings) result.push_back(const_cast<char*>(s.c_str()));
    result.push_back(nullptr);
    return result;
}

struct Spawned {
    pid_t pid = -1;
    int output = -1;
    int error = 0;
};

Spawned spawn(const std::vector<std::string>& argv, const std::filesystem::path& directory) {
    std::vector<std::string> environment{"LC_ALL=C", "TMPDIR=" + directory.string()};
    for (char** variable = environ; variable != nullptr && *variable != nullptr; ++variable) {
        if (!withheld(*variable)) environment.emplace_back(*variable);
    }
    const std::vector<char*> arguments = pointers(argv), variables = pointers(environment);

    int ends[2];
    if (pipe2(ends, O_CLOEXEC) != 0) return {.error = errno};
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_addopen(&actions, 0, "/dev/null", O_RDONLY, 0);
    posix_spawn_file_actions_adddup2(&actions, ends[1], 1);
    posix_spawn_file_actions_adddup2(&actions, ends[1], 2);
    posix_spawn_file_actions_addchdir_np(&actions, directory.c_str());

    posix_spawnattr_t
        attributes;  // a group of its own, so that a deadline ends its children too; our signal state is not its business
    posix_spawnattr_init(&attributes);
    sigset_t none, all;
    sigemptyset(&none);
    sigfillset(&all);
    posix_spawnattr_setsigmask(&attributes, &none);
    posix_spawnattr_setsigdefault(&attributes, &all);
    posix_spawnattr_setpgroup(&attributes, 0);
    posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETPGROUP | POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF);

    Spawned child;
    child.error = posix_spawn(&child.pid, argv[0].c_str(), &actions, &attributes, arguments.data(), variables.data());
    posix_spawnattr_destroy(&attributes);
    posix_spawn_file_actions_destroy(&actions);
    close(ends[1]);
    if (child.error != 0) {
        close(ends[0]);
    } else {
        child.output = ends[0];
    }
    return child;
}

/// Reads until the other end closes; false when the deadline came first.
bool read_all(int fd, Clock::time_point until, std::string& into) {
    char buffer[4096];
    for (;;) {
        const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(until - Clock::now()).count();
        if (left <= 0) return false;
        pollfd waiting{.fd = fd, .events = POLLIN, .revents = 0};
        const int ready = poll(&waiting, 1, static_cast<int>(left));
        if (ready == 0 || (ready < 0 && errno == EINTR)) continue;
        const ssize_t got = ready < 0 ? -1 : read(fd, buffer, sizeof(buffer));
        if (got < 0 && errno == EINTR) continue;
        if (got <= 0) return true;
        into.append(buffer, std::min(static_cast<std::size_t>(got), kOutputLimit - std::min(kOutputLimit, into.size())));
    }
}

/// Exit code once the child is gone; nothing when `until` comes first. A host application that ignores SIGCHLD leaves us no status:
/// then it counts as success, and the caller sees whether there is a result.
bool wait_for(pid_t pid, Clock::time_point until, int& exit_code) {
    for (;;) {
        int status = 0;
        const pid_t gone = waitpid(pid, &status, WNOHANG);
        if (gone == pid) {
            exit_code = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
            return true;
        }
        if (gone < 0 && errno != EINTR) {
            exit_code = 0;
            return true;
        }
        if (Clock::now() >= until) return false;
        std::this_thread::sleep_for(std::chrono::microseconds(200));  // its output has ended: it is exiting
    }
}

}  // namespace

ProcessResult run_process(const std::vector<std::string>& argv, const std::filesystem::path& directory,
                          std::chrono::milliseconds deadline) {
    ProcessResult result;
    const Clock::time_point until = Clock::now() + deadline;
    const Spawned child = spawn(argv, directory);
    if (child.error != 0) {
        result.failure = argv[0] + ": " + std::generic_category().message(child.error);
        return result;
    }
    const bool in_time = read_all(child.output, until, result.output) && wait_for(child.pid, until, result.exit_code);
    close(child.output);
    if (!in_time) {
        result.timed_out = true;
        kill(-child.pid, SIGKILL);
        wait_for(child.pid, Clock::now() + std::chrono::seconds(10), result.exit_code);
    }
    return result;
}

TemporaryDirectory::TemporaryDirectory() {
    std::error_code error;
    std::filesystem::path parent = std::filesystem::temp_directory_path(error);
    if (error) parent = "/tmp";
    std::string name = (parent / "sapwood-host-XXXXXX").string();
    if (mkdtemp(name.data()) == nullptr) {
        raise(ErrorCode::kIo, "cannot make a temporary directory in " + parent.string() + ": " +
                                  std::generic_category().message(errno) + "; set TMPDIR to a writable directory");
    }
    path_ = name;
}

TemporaryDirectory::~TemporaryDirectory() {
    std::error_code ignored;  // a directory left in /tmp is not worth an exception
    std::filesystem::remove_all(path_, ignored);
}

}  // namespace sapwood::host
