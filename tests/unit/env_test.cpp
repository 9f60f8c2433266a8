// SPDX-License-Identifier: Apache-2.0
#include "base/env.h"

#include <doctest/doctest.h>

#include "base/error.h"
#include "base/log.h"
#include "sapwood/types.h"
#include "support/cache_fixture.h"

namespace sapwood {
namespace {

TEST_CASE("env: set, empty and unset; a flag falls back to its documented default") {
    {
        const test::ScopedEnv set("SAPWOOD_KERNEL_DIR", "/x");
        CHECK(env::get("SAPWOOD_KERNEL_DIR") == "/x");
    }
    {
        const test::ScopedEnv empty("SAPWOOD_KERNEL_DIR", "");
        CHECK(!env::get("SAPWOOD_KERNEL_DIR"));
    }
    const test::ScopedEnv unset("SAPWOOD_DISK_CACHE", nullptr), trust("SAPWOOD_CACHE_TRUST", nullptr);
    CHECK(env::flag("SAPWOOD_DISK_CACHE"));
    CHECK(!env::flag("SAPWOOD_CACHE_TRUST"));
    const test::ScopedEnv off("SAPWOOD_DISK_CACHE", "0"), on("SAPWOOD_CACHE_TRUST", "1");
    CHECK(!env::flag("SAPWOOD_DISK_CACHE"));
    CHECK(env::flag("SAPWOOD_CACHE_TRUST"));
}

TEST_CASE("env: a variable that is not documented cannot be read") {
    CHECK_THROWS_AS(env::get("SAPWOOD_SECRET_KNOB"), Error);
    CHECK_NOTHROW(env::get("PATH"));
}

TEST_CASE("error: one text for people, one code for programs") {
    try {
        raise(ErrorCode::kCompileFailed, "decode<128> for sm_90a", "line 3: error");
    } catch (const Error& error) {
        CHECK(std::string(error.what()) == "compile_failed: decode<128> for sm_90a");
        CHECK(error.code() == ErrorCode::kCompileFailed);
        CHECK(error.detail() == "line 3: error");
    }
    CHECK(std::string(dtype_name(DType::bf16)) == "bf16");
}

TEST_CASE("log: SAPWOOD_LOG sets what reaches stderr, one warning a cause, a throwing sink harms nobody") {
    // In a child: the level is read once a process, and warnings are remembered.
    const std::string fault = test::in_child([]() -> std::string {
        test::LogCapture capture;
        for (int i = 0; i < 3; ++i) log::warning_once("unit-test-a", "first");
        log::warning_once("unit-test-b", "second");
        SAPWOOD_NEED((capture.warnings() == std::vector<std::string>{"first", "second"}));
        SAPWOOD_NEED(log::enabled(log::Level::debug));
        log::set_sink([](log::Level, std::string_view) { throw 1; });
        log::error("lost");
        return {};
    });
    CHECK(fault == "");
}

TEST_CASE("log: the default sink writes one line to stderr from the level of SAPWOOD_LOG on") {
    test::TempDir dir;
    const std::string file = (dir.path() / "stderr").string();
    const std::string fault = test::in_child([&]() -> std::string {
        const test::ScopedEnv level("SAPWOOD_LOG", "info");
        SAPWOOD_NEED(std::freopen(file.c_str(), "w", stderr) != nullptr);
        log::debug("hidden");
        log::info("shown {}");
        SAPWOOD_NEED(!log::enabled(log::Level::debug));
        std::fflush(stderr);
        return {};
    });
    CHECK(fault == "");
    const auto text = test::read_bytes(file);
    CHECK(std::string(reinterpret_cast<const char*>(text.data()), text.size()) == "[sapwood] [info] shown {}\n");
}

}  // namespace
}  // namespace sapwood
