// SPDX-License-Identifier: Apache-2.0
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <fstream>
#include <map>
#include <mutex>
#include <sstream>
#include <string_view>

#include "base/env.h"
#include "base/error.h"
#include "host/host.h"
#include "host/subprocess.h"

namespace sapwood::host {
namespace {

namespace fs = std::filesystem;
constexpr std::chrono::seconds kDeadline{120};
constexpr std::size_t kErrorLines = 50, kLogBytes = 16 * 1024;

#if defined(__x86_64__)
constexpr const char* kMachine = "x86_64";
#elif defined(__aarch64__)
constexpr const char* kMachine = "aarch64";
#else
constexpr const char* kMachine = "unknown";
#endif

const std::vector<std::string>& flags() {
    static const std::vector<std::string> all = {
        "-std=c++20",
        // A kernel here mostly runs a few times, to see what it does: against -O2 it is compiled in a third of the time and runs
        // half as fast. Instrumented, -O1 takes twice as long to compile.
        "-Og",
        "-fPIC",
        "-shared",
#if defined(__x86_64__)
        "-march=x86-64-v2",  // an artifact may be read on another machine than the one that made it
#endif
        "-fvisibility=hidden",
#if defined(SAPWOOD_SANITIZE)
        "-g1",
        "-fno-omit-frame-pointer",
        "-fsanitize=" SAPWOOD_SANITIZE,
        "-fno-sanitize-recover=all",
#endif
    };
    return all;
}

std::string joined(const std::vector<std::string>& words) {
    std::string all;
    for (const std::string& word : words) all += (all.empty() ? "" : " ") + word;
    return all;
}

std::vector<std::string> words_of(const std::string& text) {
    std::istringstream in(text);
    std::vector<std::string> words;
    for (std::string word; in >> word;) words.push_back(word);
    return words;
}

bool is_executable(const fs::path& file) {
    struct stat info;
    return stat(file.c_str(), &info) == 0 && S_ISREG(info.st_mode) && access(file.c_str(), X_OK) == 0;
}

/// Empty if there is none. A name with a slash is not searched for.
fs::path find_program(const std::string& name) {
    if (name.find('/') != std::string::npos) return is_executable(name) ? fs::absolute(name) : fs::path();
    std::istringstream path(env::get("PATH").value_or("/usr/local/bin:/usr/bin:/bin"));
    for (std::string directory; std::getline(path, directory, ':');) {
        const fs::path candidate = fs::path(directory) / name;
        if (candidate.is_absolute() && is_executable(candidate)) return candidate;  // never one below the current directory
    }
    return {};
}

struct Found {
    std::vector<std::string> command;  // program and the words that $CXX has after it; empty if there is none
    std::string tried;
};

Found find_compiler() {
    std::vector<std::vector<std::string>> candidates;
    if (const auto cxx = env::get("CXX")) candidates.push_back(words_of(*cxx));
#if defined(SAPWOOD_SANITIZE) && defined(__clang__)
    candidates.push_back({"clang++"});  // kernels and library share one sanitizer runtime
#elif defined(SAPWOOD_SANITIZE)
    candidates.push_back({"g++"});
#endif
    candidates.insert(candidates.end(), {{"c++"}, {"g++"}, {"clang++"}});
    Found found;
    for (std::vector<std::string>& words : candidates) {
        if (words.empty()) continue;
        found.tried += (found.tried.empty() ? "" : ", ") + words[0];
        const fs::path program = find_program(words[0]);
        if (program.empty()) continue;
        words[0] = program.string();
        found.command = std::move(words);
        return found;
    }
    return found;
}

/// First line of `--version`, asked once a process for each command.
std::string version_line(const std::vector<std::string>& command) {
    static std::mutex mutex;
    static std::map<std::string, std::string> known;
    std::lock_guard lock(mutex);
    std::string& line = known[joined(command)];
    if (line.empty()) {
        std::vector<std::string> argv = command;
        argv.push_back("--version");
        const ProcessResult result = run_process(argv, "/", kDeadline);
        if (!result.failure.empty() || result.exit_code != 0 || result.output.empty()) {
            raise(ErrorCode::kNoCompiler, "the C++ compiler " + command[0] + " does not tell its version",
                  result.failure.empty() ? result.output : result.failure);
        }
        line = result.output.substr(0, result.output.find('\n'));
    }
    return line;
}

std::string first_lines(const std::string& text, std::size_t count) {
    std::size_t at = 0;
    for (std::size_t line = 0; line < count && at < text.size(); line++) at = std::min(text.find('\n', at), text.size() - 1) + 1;
    return at < text.size() ? text.substr(0, at) + "...\n" : text;
}

void write_file(const fs::path& path, std::string_view text) {
    std::error_code error;
    fs::create_directories(path.parent_path(), error);
    std::ofstream out(path, std::ios::binary);
    out.write(text.data(), static_cast<std::streamsize>(text.size()));
    out.close();
    if (!out) raise(ErrorCode::kIo, "cannot write " + path.string() + " to compile it; is the temporary directory full?");
}

std::vector<std::byte> read_file(const fs::path& path) {
    std::ifstream in(path, std::ios::binary | std::ios::ate);
    if (!in) return {};
    std::vector<std::byte> bytes(static_cast<std::size_t>(in.tellg()));
    in.seekg(0);
    in.read(reinterpret_cast<char*>(bytes.data()), static_cast<std::streamsize>(bytes.size()));
    return in ? bytes : std::vector<std::byte>();
}

bool is_elf(const std::vector<std::byte>& bytes) {
    constexpr std::byte kMagic[] = {std::byte{0x7f}, std::byte{'E'}, std::byte{'L'}, std::byte{'F'}};
    return bytes.size() > 64 && std::equal(std::begin(kMagic), std::end(kMagic), bytes.begin());
}

}  // namespace

struct Compiler::Impl {
    std::mutex mutex;
    Found found;

    /// Looked for until there is one: a machine may get its compiler while we run.
    std::vector<std::string> command() {
        std::lock_guard lock(mutex);
        if (found.command.empty()) found = find_compiler();
        return found.command;
    }
    std::vector<std::string> command_or_throw(const std::string& purpose) {
        std::vector<std::string> result = command();
        if (!result.empty()) return result;
        std::lock_guard lock(mutex);
        raise(ErrorCode::kNoCompiler,
              purpose + " no C++20 compiler was found; tried: " + found.tried + "; install g++ or clang++, or set CXX",
              "PATH=" + env::get("PATH").value_or(""));
    }
};

Compiler::Compiler() : impl_(std::make_unique<Impl>()) {}
Compiler::~Compiler() = default;

std::string Compiler::path() {
    const std::vector<std::string> command = impl_->command();
    return command.empty() ? std::string() : command[0];
}

std::string Compiler::identity() {
    const std::vector<std::string> command = impl_->command_or_throw("the host target needs a compiler and");
    std::vector<std::string> all(command.begin() + 1, command.end());
    all.insert(all.end(), flags().begin(), flags().end());
    return version_line(command) + " " + kMachine + " flags:" + joined(all);
}

std::string Compiler::family() { return std::string("host ") + kMachine + " flags:" + joined(flags()); }

jit::Artifact Compiler::compile(const jit::CompileRequest& request) {
    const auto begin = std::chrono::steady_clock::now();
    std::vector<std::string> argv = impl_->command_or_throw("kernel " + request.name + " for host has to be compiled and");

    const TemporaryDirectory directory;
    for (const jit::Header& header : request.headers) {
        const fs::path path = fs::path(header.path).lexically_normal();
        if (path.empty() || path.is_absolute() || *path.begin() == "..") {
            raise(ErrorCode::kInternal, "template path " + std::string(header.path) + " leads out of the template set");
        }
        write_file(directory.path() / path, header.text);
    }
    // Relative names only: neither the payload nor the log depends on where this directory is.
    write_file(directory.path() / "kernel.cpp", request.source);
    argv.insert(argv.end(), flags().begin(), flags().end());
    argv.insert(argv.end(), request.options.begin(), request.options.end());
    argv.insert(argv.end(), {"-I.", "-o", "kernel.so", "kernel.cpp"});

    const ProcessResult result = run_process(argv, directory.path(), kDeadline);
    std::vector<std::byte> payload = read_file(directory.path() / "kernel.so");
    std::string cause = result.failure;
    if (result.timed_out) cause = "killed after " + std::to_string(kDeadline.count()) + " s";
    if (cause.empty() && result.exit_code != 0) cause = "exit code " + std::to_string(result.exit_code);
    if (cause.empty() && !is_elf(payload)) cause = "it left no shared object";
    if (!cause.empty()) {
        raise(ErrorCode::kCompileFailed, "kernel " + request.name + " for host does not compile: " + cause,
              "command: " + joined(argv) + "\n" + first_lines(result.output, kErrorLines));
    }

    jit::Artifact artifact;
    artifact.kind = jit::PayloadKind::host_object;
    artifact.name = request.name;
    artifact.entry = request.entry;
    artifact.target = request.target;
    artifact.compiler = identity();
    artifact.log = result.output.substr(0, kLogBytes);
    artifact.payload = std::move(payload);
    artifact.compile_ms = std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - begin).count();
    return artifact;
}

}  // namespace sapwood::host
