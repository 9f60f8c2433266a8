// SPDX-License-Identifier: Apache-2.0
#include "cuda/driver.h"

#include <dlfcn.h>
#include <pthread.h>
#include <unistd.h>

#include "base/error.h"
#include "cuda/device.h"

namespace sapwood::cuda {
namespace {

/// cuGetProcAddress as of CUDA 12.0 (PFN_cuGetProcAddress_v12000).
using GetProcAddress = Result (*)(const char* symbol, void** function, int version, std::uint64_t flags, int* status);

// Streams given as null mean the legacy default stream, whatever default the host application was compiled with.
constexpr std::uint64_t kLegacyStream = 1;

struct State {
    Api api;
    std::string problem;  // empty: usable
    int version = 0;
    pid_t pid = 0;
};

std::string version_text(int version) { return std::to_string(version / 1000) + "." + std::to_string(version % 1000 / 10); }

void* open_library(std::string& problem) {
    // The second and third are where container runtimes and WSL mount the driver without telling ld.so.
    for (const char* name : {"libcuda.so.1", "/usr/local/nvidia/lib64/libcuda.so.1", "/usr/lib/wsl/lib/libcuda.so.1"}) {
        if (void* library = dlopen(name, RTLD_NOW | RTLD_LOCAL)) return library;
        if (const char* why = dlerror(); why != nullptr && problem.empty()) problem = why;
    }
    problem = "the CUDA driver library libcuda.so.1 was not found; it is needed to load and launch kernels, not to compile them (" +
              problem + ")";
    return nullptr;
}

bool resolve(GetProcAddress get, const char* name, int version, void** function) {
    int status = 0;
    *function = nullptr;
    return get(name, function, version, kLegacyStream, &status) == kSuccess && status == 0 && *function != nullptr;
}

/// Fills everything but pid; the library stays open for the life of the process.
void load(State& state) {
    void* library = open_library(state.problem);
    if (library == nullptr) return;
    state.problem.clear();
    const auto get = reinterpret_cast<GetProcAddress>(dlsym(library, "cuGetProcAddress_v2"));
    if (get == nullptr) {
        int version = 0;
        if (const auto ask = reinterpret_cast<Result (*)(int*)>(dlsym(library, "cuDriverGetVersion"))) ask(&version);
        state.problem = "the CUDA driver supports CUDA " + (version > 0 ? version_text(version) : std::string("(unknown)")) +
                        "; Sapwood needs 12.0 or newer (driver 525.60)";
        return;
    }
    Api& api = state.api;
    std::string missing;
#define SAPWOOD_RESOLVE(name, version, arguments) \
    if (!resolve(get, #name, version, reinterpret_cast<void**>(&api.name))) missing += " " #name;
    SAPWOOD_DRIVER_FUNCTIONS(SAPWOOD_RESOLVE)
#undef SAPWOOD_RESOLVE
    if (!missing.empty()) {
        state.problem = "the CUDA driver library lacks" + missing + "; update the driver";
        return;
    }
#define SAPWOOD_RESOLVE(name, version, arguments) resolve(get, #name, version, reinterpret_cast<void**>(&api.name));
    SAPWOOD_DRIVER_OPTIONAL_FUNCTIONS(SAPWOOD_RESOLVE)
#undef SAPWOOD_RESOLVE
    if (const Result result = api.cuInit(0); result != kSuccess) {
        const char* name = nullptr;
        const char* text = nullptr;
        api.cuGetErrorName(result, &name);
        api.cuGetErrorString(result, &text);
        state.problem = "the CUDA driver does not start: cuInit returned " +
                        std::string(name != nullptr ? name : "an unknown error") + " (" + std::to_string(result) +
                        (text != nullptr ? ", " + std::string(text) : std::string()) + ")";
        return;
    }
    api.cuDriverGetVersion(&state.version);
    pthread_atfork(nullptr, nullptr, [] { detail::forked_after_init.store(true, std::memory_order_relaxed); });
}

/// Made on first use and never destroyed: destructors of static objects may still release CUDA resources.
State& state() {
    static State* const instance = [] {
        auto* made = new State;
        made->pid = getpid();
        load(*made);
        return made;
    }();
    return *instance;
}

std::string fork_text(const State& state) {
    return "the CUDA driver was initialised in process " + std::to_string(state.pid) +
           " and does not survive fork(); use CUDA only after the fork, or spawn the child";
}

}  // namespace

std::atomic<bool> detail::forked_after_init = false;

std::string driver_problem() {
    const State& driver = state();
    return forked() ? fork_text(driver) : driver.problem;
}

int device_count() {
    const Api* driver = api_if_alive();
    int count = 0;
    return driver != nullptr && driver->cuDeviceGetCount(&count) == kSuccess ? count : 0;
}

const Api& api() {
    if (std::string problem = driver_problem(); !problem.empty()) raise(ErrorCode::kDriver, problem);
    return state().api;
}

const Api* api_if_alive() noexcept {
    const State& driver = state();
    return driver.problem.empty() && !forked() ? &driver.api : nullptr;
}

int driver_version() noexcept { return state().version; }

void fail(Result result, const char* call, const std::string& context) {
    const State& driver = state();
    if (forked()) raise(ErrorCode::kDriver, fork_text(driver));
    const char* name = nullptr;
    const char* text = nullptr;
    if (driver.api.cuGetErrorName != nullptr) driver.api.cuGetErrorName(result, &name);
    if (driver.api.cuGetErrorString != nullptr) driver.api.cuGetErrorString(result, &text);
    std::string message = std::string(call) + ": " + (name != nullptr ? name : "unknown error") + " (" + std::to_string(result) +
                          (text != nullptr ? ", " + std::string(text) : std::string()) + ")";
    if (!context.empty()) message += "; " + context;
    // Faults inside a kernel are reported by whatever call comes next, and leave the context unusable.
    if (result == kIllegalAddress || result == kLaunchTimeout || result == kAssert ||
        (result >= kHardwareStackError && result <= kLaunchFailed))
        message += "; an earlier kernel may be the cause, and this process cannot use the device any more";
    raise(ErrorCode::kDriver, message);
}

}  // namespace sapwood::cuda
