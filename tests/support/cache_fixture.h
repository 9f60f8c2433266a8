// SPDX-License-Identifier: Apache-2.0
// What the tests of the kernel cache share: a directory, a compiler that only pretends, a count of warnings, a forked child.
#pragma once

#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>
#include <iterator>
#include <mutex>
#include <string>
#include <vector>

#include "base/log.h"
#include "jit/disk_cache.h"

namespace sapwood::test {

class TempDir {
public:
    TempDir() {
        std::string name = (std::filesystem::temp_directory_path() / "sapwood-test-XXXXXX").string();
        path_ = ::mkdtemp(name.data());
    }
    ~TempDir() {
        std::error_code ignored;
        if (owner_ == ::getpid()) std::filesystem::remove_all(path_, ignored);
    }
    TempDir(const TempDir&) = delete;
    TempDir& operator=(const TempDir&) = delete;
    const std::filesystem::path& path() const { return path_; }

private:
    std::filesystem::path path_;
    pid_t owner_ = ::getpid();  // a forked child must not remove it
};

/// Sets (or, with null, unsets) an environment variable for the length of a scope.
class ScopedEnv {
public:
    ScopedEnv(const char* name, const char* value) : name_(name) {
        if (const char* old = std::getenv(name)) old_ = old, had_ = true;
        set(value);
    }
    ~ScopedEnv() { set(had_ ? old_.c_str() : nullptr); }
    ScopedEnv(const ScopedEnv&) = delete;
    ScopedEnv& operator=(const ScopedEnv&) = delete;

private:
    void set(const char* value) { value != nullptr ? ::setenv(name_, value, 1) : ::unsetenv(name_); }
    const char* name_;
    std::string old_;
    bool had_ = false;
};

/// Takes every message while it lives.
class LogCapture {
public:
    LogCapture() {
        log::set_sink([this](log::Level level, std::string_view text) {
            std::lock_guard lock(mutex_);
            (level >= log::Level::warning ? warnings_ : others_).emplace_back(text);
        });
    }
    ~LogCapture() { log::set_sink(nullptr); }
    std::vector<std::string> warnings() {
        std::lock_guard lock(mutex_);
        return warnings_;
    }
    bool mentions(std::string_view text) {
        std::lock_guard lock(mutex_);
        for (const auto* list : {&warnings_, &others_}) {
            for (const std::string& line : *list) {
                if (line.find(text) != std::string::npos) return true;
            }
        }
        return false;
    }

private:
    std::mutex mutex_;
    std::vector<std::string> warnings_, others_;
};

/// The payload that FakeCompiler makes of a source: an ELF header for a cubin, then bytes that follow from the source.
inline std::vector<std::byte> payload_of(const std::string& source, std::size_t size = 264) {
    constexpr unsigned char kHead[20] = {0x7f, 'E', 'L', 'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0, 190, 0};
    std::vector<std::byte> payload(size);
    if (size >= sizeof kHead) std::memcpy(payload.data(), kHead, sizeof kHead);
    for (std::size_t i = 64; i < size; ++i) payload[i] = static_cast<std::byte>(source[i % source.size()] + i);
    return payload;
}

class FakeCompiler : public jit::Compiler {
public:
    explicit FakeCompiler(std::function<void(const jit::CompileRequest&)> during = {}) : during_(std::move(during)) {}
    std::string identity() override { return identity_text; }
    jit::Artifact compile(const jit::CompileRequest& request) override {
        ++compiles;
        if (during_) during_(request);
        jit::Artifact artifact;
        artifact.name = request.name;
        artifact.entry = request.entry;
        artifact.target = request.target;
        artifact.compiler = "fake 1.0";
        artifact.log = "one warning";
        artifact.compile_ms = 12.5;
        artifact.resources = {32, 1024, 8, 256};
        artifact.payload = payload_of(request.source, payload_bytes);
        return artifact;
    }

    std::atomic<int> compiles{0};
    std::size_t payload_bytes = 264;
    std::string identity_text = "fake-build-1";

private:
    std::function<void(const jit::CompileRequest&)> during_;
};

inline jit::CompileRequest request_for(const std::string& source) {
    jit::CompileRequest request;
    request.name = "decode<" + source + ">";
    request.source = source;
    request.entry = "sapwood_decode";
    request.target = "sm_90a";
    request.options = {"-std=c++20", "-default-device"};
    request.headers_digest = "0123abcd";
    return request;
}

inline std::filesystem::path entry_path(const std::filesystem::path& root, const Digest& digest) {
    const std::string hex = to_hex(digest);
    return root / "v1" / "objects" / hex.substr(0, 2) / (hex.substr(2) + ".swk");
}

inline std::vector<std::byte> read_bytes(const std::filesystem::path& path) {
    std::ifstream in(path, std::ios::binary);
    const std::string text{std::istreambuf_iterator<char>(in), {}};
    std::vector<std::byte> bytes(text.size());
    if (!text.empty()) std::memcpy(bytes.data(), text.data(), text.size());
    return bytes;
}

inline void write_bytes(const std::filesystem::path& path, std::span<const std::byte> bytes) {
    std::ofstream out(path, std::ios::binary | std::ios::trunc);
    out.write(reinterpret_cast<const char*>(bytes.data()), static_cast<std::streamsize>(bytes.size()));
}

/// Starts `body` in a forked child, which ends with its result or, if it hangs, by SIGALRM after a minute.
inline pid_t start_child(const std::function<int()>& body) {
    std::fflush(nullptr);  // or the child may write the parent's buffered output again
    const pid_t pid = ::fork();
    if (pid != 0) return pid;
    ::alarm(60);
    int result = 99;
    try {
        result = body();
    } catch (...) {}
    ::_exit(result);
}

/// Exit status of a child; 1000 + signal if one killed it.
inline int finish_child(pid_t pid) {
    int status = 0;
    if (::waitpid(pid, &status, 0) != pid) return -1;
    return WIFEXITED(status) ? WEXITSTATUS(status) : 1000 + WTERMSIG(status);
}

/// Runs `body` in a child of its own (fresh warnings, its own limits and user) and returns what it says is wrong; empty: nothing.
inline std::string in_child(const std::function<std::string()>& body) {
    int ends[2];
    if (::pipe(ends) != 0) return "pipe failed";
    const pid_t pid = start_child([&] {
        std::string fault;
        try {
            fault = body();
        } catch (const std::exception& error) {
            fault = std::string("threw: ") + error.what();
        }
        return ::write(ends[1], fault.data(), fault.size()) == static_cast<ssize_t>(fault.size()) ? 0 : 98;
    });
    ::close(ends[1]);
    std::string fault;
    char buffer[512];
    for (ssize_t got; (got = ::read(ends[0], buffer, sizeof buffer)) > 0;) fault.append(buffer, static_cast<std::size_t>(got));
    ::close(ends[0]);
    const int status = finish_child(pid);
    if (status != 0) fault += " [child ended with " + std::to_string(status) + "]";
    return fault;
}

}  // namespace sapwood::test

/// Inside in_child: states what must hold.
#define SAPWOOD_NEED(condition) \
    if (!(condition)) return std::string(#condition)
