// SPDX-License-Identifier: Apache-2.0
#include "cuda/nvrtc.h"

#include <dlfcn.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <mutex>
#include <utility>

#include "base/error.h"
#include "cuda/nvrtc_locate.h"
#include "cuda/ptxas_log.h"
#include "cuda/sm_table.h"

namespace sapwood::cuda {
namespace {

using NvrtcResult = int;  // nvrtcResult
using Program = struct ProgramTag*;
constexpr NvrtcResult kNvrtcSuccess = 0, kNvrtcBuiltinFailure = 7;

// Signatures from nvrtc.h 13.0; all are in 12.0 as well.
#define SAPWOOD_NVRTC_FUNCTIONS(X)                                                                            \
    X(const char*, nvrtcGetErrorString, (NvrtcResult result))                                                 \
    X(NvrtcResult, nvrtcVersion, (int* major, int* minor))                                                    \
    X(NvrtcResult, nvrtcGetNumSupportedArchs, (int* count))                                                   \
    X(NvrtcResult, nvrtcGetSupportedArchs, (int* archs))                                                      \
    X(NvrtcResult, nvrtcCreateProgram,                                                                        \
      (Program * program, const char* source, const char* name, int header_count, const char* const* headers, \
       const char* const* include_names))                                                                     \
    X(NvrtcResult, nvrtcDestroyProgram, (Program * program))                                                  \
    X(NvrtcResult, nvrtcCompileProgram, (Program program, int option_count, const char* const* options))      \
    X(NvrtcResult, nvrtcGetPTXSize, (Program program, std::size_t * bytes))                                   \
    X(NvrtcResult, nvrtcGetPTX, (Program program, char* ptx))                                                 \
    X(NvrtcResult, nvrtcGetCUBINSize, (Program program, std::size_t * bytes))                                 \
    X(NvrtcResult, nvrtcGetCUBIN, (Program program, char* cubin))                                             \
    X(NvrtcResult, nvrtcGetProgramLogSize, (Program program, std::size_t * bytes))                            \
    X(NvrtcResult, nvrtcGetProgramLog, (Program program, char* log))

struct NvrtcApi {
#define SAPWOOD_DECLARE(type, name, arguments) type(*name) arguments = nullptr;
    SAPWOOD_NVRTC_FUNCTIONS(SAPWOOD_DECLARE)
#undef SAPWOOD_DECLARE
};

/// Everything known of the library once it is loaded; never changes after that.
struct Loaded {
    NvrtcApi api;
    int major = 0, minor = 0;
    std::vector<int> archs;
    std::string version() const { return std::to_string(major) + "." + std::to_string(minor); }
    bool at_least(int wanted_major, int wanted_minor) const {
        return std::pair(major, minor) >= std::pair(wanted_major, wanted_minor);
    }
};

class ProgramGuard {
public:
    explicit ProgramGuard(const NvrtcApi& api) : api_(api) {}
    ~ProgramGuard() {
        if (program != nullptr) api_.nvrtcDestroyProgram(&program);
    }
    ProgramGuard(const ProgramGuard&) = delete;
    ProgramGuard& operator=(const ProgramGuard&) = delete;
    Program program = nullptr;

private:
    const NvrtcApi& api_;
};

/// What a size-and-fetch pair of calls yields; empty if either fails. NVRTC 13.0 says success and 0 bytes after a failed compile.
template <class Size, class Get>
std::string fetch(Program program, Size size, Get get) {
    std::size_t bytes = 0;
    if (size(program, &bytes) != kNvrtcSuccess || bytes == 0) return {};
    std::string text(bytes, '\0');
    return get(program, text.data()) == kNvrtcSuccess ? text : std::string();
}

std::string fetch_log(const NvrtcApi& api, Program program) {
    std::string log = fetch(program, api.nvrtcGetProgramLogSize, api.nvrtcGetProgramLog);
    log.resize(std::strlen(log.c_str()));  // counted with its terminator
    return log;
}

std::vector<const char*> pointers(const std::vector<std::string>& texts) {
    std::vector<const char*> result;
    for (const std::string& text : texts) result.push_back(text.c_str());
    return result;
}

std::string joined(const std::vector<std::string>& texts) {
    std::string line;
    for (const std::string& text : texts) line += (line.empty() ? "" : " ") + text;
    return line;
}

/// The line that says what is wrong, for a message of one line.
std::string first_error(const std::string& log) {
    for (std::size_t at = 0; at < log.size();) {
        const std::size_t end = std::min(log.find('\n', at), log.size());
        const std::string line = log.substr(at, end - at);
        if (line.find("error") != std::string::npos || line.find("fatal") != std::string::npos) return line;
        at = end + 1;
    }
    return log.substr(0, log.find('\n'));
}

std::string tried_text(const NvrtcFiles& files) {
    std::string text;
    for (const std::string& line : files.tried) text += line + "\n";
    return text;
}

[[noreturn]] void raise_not_found(const NvrtcFiles& files) {
    if (files.explicitly)
        raise(ErrorCode::kNoCompiler, "SAPWOOD_NVRTC names no usable libnvrtc: " +
                                          (files.tried.empty() ? std::string() : files.tried.back()) + "; correct or unset it");
    raise(ErrorCode::kNoCompiler,
          "libnvrtc.so (12.0 or newer) was not found in " + std::to_string(files.tried.size()) +
              " places (listed in the detail); install it (pip install nvidia-cuda-nvrtc) or set SAPWOOD_NVRTC",
          tried_text(files));
}

Loaded load(const NvrtcFiles& files) {
    // NVRTC asks for its builtins by bare name and has no run path: what is loaded already under that name is what it gets. Where
    // this fails, NVRTC itself says why at the first compile.
    dlopen(files.builtins.c_str(), RTLD_LAZY | RTLD_LOCAL);
    // Never closed: NVRTC keeps threads and state of its own.
    void* library = dlopen(files.library.c_str(), RTLD_LAZY | RTLD_LOCAL);
    if (library == nullptr) {
        const char* why = dlerror();
        raise(ErrorCode::kNoCompiler, files.library + " cannot be loaded: " + (why != nullptr ? why : "unknown reason"));
    }
    Loaded loaded;
    std::string missing;
#define SAPWOOD_RESOLVE(type, name, arguments)                                    \
    loaded.api.name = reinterpret_cast<type(*) arguments>(dlsym(library, #name)); \
    if (loaded.api.name == nullptr) missing += " " #name;
    SAPWOOD_NVRTC_FUNCTIONS(SAPWOOD_RESOLVE)
#undef SAPWOOD_RESOLVE
    if (!missing.empty()) raise(ErrorCode::kNoCompiler, files.library + " is no usable libnvrtc; it lacks" + missing);
    int count = 0;
    if (loaded.api.nvrtcVersion(&loaded.major, &loaded.minor) != kNvrtcSuccess || loaded.major < 12)
        raise(ErrorCode::kNoCompiler,
              files.library + " is NVRTC " + loaded.version() + "; kernels need C++20, that is 12.0 or newer");
    if (loaded.api.nvrtcGetNumSupportedArchs(&count) == kNvrtcSuccess && count > 0) {
        loaded.archs.resize(static_cast<std::size_t>(count));
        if (loaded.api.nvrtcGetSupportedArchs(loaded.archs.data()) != kNvrtcSuccess) loaded.archs.clear();
    }
    return loaded;
}

/// Tells builds apart where a library carries no build-id: the compiler's own header in a trivial PTX holds its change list.
std::string probe(const Loaded& loaded) {
    const NvrtcApi& api = loaded.api;
    ProgramGuard guard(api);
    std::vector<std::string> options{"--gpu-architecture=compute_" +
                                     std::to_string(loaded.archs.empty() ? 80 : loaded.archs.back())};
    if (loaded.at_least(12, 9)) options.push_back("--no-cache");
    std::string build;
    if (api.nvrtcCreateProgram(&guard.program, "extern \"C\" __global__ void probe() {}", "probe.cu", 0, nullptr, nullptr) ==
            kNvrtcSuccess &&
        api.nvrtcCompileProgram(guard.program, static_cast<int>(options.size()), pointers(options).data()) == kNvrtcSuccess) {
        const std::string ptx = fetch(guard.program, api.nvrtcGetPTXSize, api.nvrtcGetPTX);
        if (const std::size_t at = ptx.find("CL-"); at != std::string::npos)
            build = ptx.substr(at, ptx.find_first_of("\r\n", at) - at);
    }
    return loaded.version() + (build.empty() ? "" : "-" + build);
}

std::string arch_list(const std::vector<int>& archs) {
    std::string text;
    for (const int arch : archs) text += (text.empty() ? "sm_" : ", sm_") + std::to_string(arch);
    return text;
}

void check_target(const Loaded& loaded, const jit::CompileRequest& request) {
    const auto target = parse_target(request.target);
    const auto& archs = loaded.archs;
    if (target && (archs.empty() || std::find(archs.begin(), archs.end(), target->number()) != archs.end())) return;
    raise(ErrorCode::kUnsupportedDevice, "kernel " + request.name + ": NVRTC " + loaded.version() + " cannot compile for \"" +
                                             request.target + "\"; it knows " + arch_list(archs) +
                                             ": ask for one of these, or install an NVRTC that knows it (pip install "
                                             "--upgrade nvidia-cuda-nvrtc) and name it in SAPWOOD_NVRTC");
}

}  // namespace

struct Nvrtc::Impl {
    std::mutex mutex;  // guards what follows until it is set; compiles run side by side
    NvrtcFiles files;
    std::unique_ptr<const Loaded> loaded;
    std::string identity;

    /// A failed search is not remembered: the library may be installed, or the variable corrected, while the process lives.
    const NvrtcFiles& locate() {
        if (files.library.empty()) files = locate_nvrtc();
        if (files.library.empty()) raise_not_found(files);
        return files;
    }
    const Loaded& load_locked() {
        if (!loaded) loaded = std::make_unique<const Loaded>(load(locate()));
        return *loaded;
    }
    const Loaded& ready() {
        const std::lock_guard lock(mutex);
        return load_locked();
    }
    [[noreturn]] void raise_failed(const Loaded& nvrtc, const jit::CompileRequest& request, const std::vector<std::string>& options,
                                   const std::string& reason, const std::string& log) const;
};

Nvrtc::Nvrtc() : impl_(std::make_unique<Impl>()) {}
Nvrtc::~Nvrtc() = default;

std::string Nvrtc::path() {
    const std::lock_guard lock(impl_->mutex);
    if (impl_->files.library.empty()) impl_->files = locate_nvrtc();
    return impl_->files.library;
}

std::string Nvrtc::version() { return impl_->ready().version(); }
std::vector<int> Nvrtc::supported_archs() { return impl_->ready().archs; }

std::string Nvrtc::identity() {
    const std::lock_guard lock(impl_->mutex);
    if (!impl_->identity.empty()) return impl_->identity;
    const NvrtcFiles& files = impl_->locate();
    std::string library = elf_build_id(files.library);
    std::string builtins = elf_build_id(files.builtins);
    if (library.empty() || builtins.empty()) {
        const std::string build = probe(impl_->load_locked());
        if (library.empty()) library = build;
        if (builtins.empty()) builtins = build;
    }
    impl_->identity = "nvrtc:" + library + "+builtins:" + builtins;
    return impl_->identity;
}

void Nvrtc::Impl::raise_failed(const Loaded& nvrtc, const jit::CompileRequest& request, const std::vector<std::string>& options,
                               const std::string& reason, const std::string& log) const {
    const std::string compiler = "NVRTC " + nvrtc.version();
    raise(ErrorCode::kCompileFailed, compiler + " did not compile " + request.name + " for " + request.target + ": " + reason,
          "kernel:   " + request.name + "\ntarget:   " + request.target + "\noptions:  " + joined(options) +
              "\ncompiler: " + compiler + " (" + files.library + ")\n\n" + first_lines(log, 50));
}

jit::Artifact Nvrtc::compile(const jit::CompileRequest& request) {
    const Loaded& nvrtc = impl_->ready();
    const NvrtcApi& api = nvrtc.api;
    check_target(nvrtc, request);

    std::vector<std::string> options = request.options;
    options.push_back("--gpu-architecture=" + request.target);
    options.push_back("--no-source-include");  // else quoted includes are looked for in the working directory too
    options.push_back("--ptxas-options=-v");   // registers, spills and shared memory go to the log
    // From 12.9 on NVRTC has a cache of its own, and initialises the CUDA driver in this process to place it.
    if (nvrtc.at_least(12, 9)) options.push_back("--no-cache");
    // Views need not be terminated; a copy of the whole set costs microseconds.
    std::vector<std::string> header_texts, header_paths;
    for (const jit::Header& header : request.headers) {
        header_texts.emplace_back(header.text);
        header_paths.emplace_back(header.path);
    }

    const auto begin = std::chrono::steady_clock::now();
    ProgramGuard guard(api);
    NvrtcResult result =
        api.nvrtcCreateProgram(&guard.program, request.source.c_str(), (request.entry + ".cu").c_str(),
                               static_cast<int>(header_texts.size()), pointers(header_texts).data(), pointers(header_paths).data());
    if (result != kNvrtcSuccess)
        impl_->raise_failed(nvrtc, request, options, std::string("nvrtcCreateProgram: ") + api.nvrtcGetErrorString(result), {});
    result = api.nvrtcCompileProgram(guard.program, static_cast<int>(options.size()), pointers(options).data());
    const std::string log = fetch_log(api, guard.program);
    if (result == kNvrtcBuiltinFailure)
        raise(ErrorCode::kNoCompiler,
              "NVRTC " + nvrtc.version() + " (" + impl_->files.library + ") cannot use its builtins library: " + first_error(log) +
                  "; libnvrtc-builtins of the same version must lie beside it",
              log);
    if (result != kNvrtcSuccess)
        impl_->raise_failed(nvrtc, request, options, log.empty() ? api.nvrtcGetErrorString(result) : first_error(log), log);
    const std::string cubin = fetch(guard.program, api.nvrtcGetCUBINSize, api.nvrtcGetCUBIN);
    const double elapsed = std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - begin).count();
    if (!cubin.starts_with("\177ELF")) impl_->raise_failed(nvrtc, request, options, "it reported success but gave no cubin", log);
    // Names of sections: the one place where an entry that the source forgot, or mangled, shows before a GPU does.
    if (cubin.find(".text." + request.entry + '\0') == std::string::npos)
        impl_->raise_failed(nvrtc, request, options,
                            "the source defines no extern \"C\" __global__ function \"" + request.entry + "\"", log);

    const PtxasLog report = read_ptxas_log(log, request.entry);
    jit::Artifact artifact;
    artifact.kind = jit::PayloadKind::cubin;
    artifact.name = request.name;
    artifact.entry = request.entry;
    artifact.target = request.target;
    artifact.compiler = identity();
    artifact.log = report.remarks;
    artifact.compile_ms = elapsed;
    artifact.resources = report.resources;
    const auto* bytes = reinterpret_cast<const std::byte*>(cubin.data());
    artifact.payload.assign(bytes, bytes + cubin.size());
    return artifact;
}

}  // namespace sapwood::cuda
