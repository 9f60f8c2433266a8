// SPDX-License-Identifier: Apache-2.0
#include "host/subprocess.h"

#include <doctest/doctest.h>

#include <chrono>
#include <cstdlib>
#include <filesystem>

using namespace sapwood::host;
using namespace std::chrono_literals;

static ProcessResult shell(const std::string& script, std::chrono::milliseconds deadline = 60s) {
    return run_process({"/bin/sh", "-c", script}, "/", deadline);
}

TEST_CASE("a child's output, exit code and directory") {
    ProcessResult result = shell("echo out; echo err >&2; pwd; exit 3");
    CHECK(result.exit_code == 3);
    CHECK(result.output == "out\nerr\n/\n");
    CHECK(!result.timed_out);
    CHECK(result.failure.empty());
    CHECK(shell("kill -9 $$").exit_code == 128 + 9);
    CHECK(shell("read line || echo closed").output == "closed\n");
    CHECK(shell("head -c 1000000 /dev/zero").output.size() == 256 * 1024);  // and the child is not left writing
}

TEST_CASE("a program that is not there") {
    const ProcessResult result = run_process({"/nonexistent/compiler"}, "/", 1s);
    CHECK(result.failure.find("/nonexistent/compiler") != std::string::npos);
    CHECK(result.exit_code != 0);
}

TEST_CASE("a deadline ends the child and its children") {
    const auto begin = std::chrono::steady_clock::now();
    const ProcessResult result = shell("echo begun; sleep 100 & sleep 100", 300ms);
    CHECK(result.timed_out);
    CHECK(result.output == "begun\n");
    CHECK(std::chrono::steady_clock::now() - begin < 20s);
}

TEST_CASE("what would change a compilation does not reach it") {
    setenv("CPATH", "/somewhere", 1);
    setenv("SAPWOOD_TEST_MARK", "kept", 1);
    CHECK(shell("echo ${CPATH:-none} $SAPWOOD_TEST_MARK $LC_ALL $TMPDIR").output == "none kept C /\n");
    unsetenv("CPATH");
    unsetenv("SAPWOOD_TEST_MARK");
}

TEST_CASE("a temporary directory vanishes with what is in it") {
    std::filesystem::path path;
    {
        const TemporaryDirectory directory;
        path = directory.path();
        CHECK(shell("mkdir -p " + path.string() + "/a/b && touch " + path.string() + "/a/b/c").exit_code == 0);
        CHECK(std::filesystem::exists(path / "a/b/c"));
    }
    CHECK(!std::filesystem::exists(path));
}
