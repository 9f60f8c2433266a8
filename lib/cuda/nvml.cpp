// SPDX-License-Identifier: Apache-2.0
#include "cuda/nvml.h"

#include <dlfcn.h>

#include "cuda/device.h"

namespace sapwood::cuda {
namespace {

using Handle = struct nvmlDevice_st*;
constexpr int kOk = 0, kClockSm = 1, kClockMemory = 2;
constexpr unsigned kText = 96;

/// One open library; NVML counts its users, so that others in the process are not disturbed.
class Nvml {
public:
    Nvml() : library_(dlopen("libnvidia-ml.so.1", RTLD_NOW | RTLD_LOCAL)) {
        if (library_ != nullptr) open_ = call<int()>("nvmlInit_v2") == kOk;
    }
    ~Nvml() {
        if (open_) call<int()>("nvmlShutdown");
        if (library_ != nullptr) dlclose(library_);
    }
    Nvml(const Nvml&) = delete;
    Nvml& operator=(const Nvml&) = delete;
    bool is_open() const { return open_; }

    /// -1 if the library has no such function.
    template <class Signature, class... Arguments>
    int call(const char* name, Arguments... arguments) const {
        auto* function = reinterpret_cast<Signature*>(dlsym(library_, name));
        return function != nullptr ? function(arguments...) : -1;
    }
    std::string device_text(const char* name, Handle device) const {
        char text[kText] = {};
        return call<int(Handle, char*, unsigned)>(name, device, text, kText) == kOk ? text : std::string();
    }
    int clock(Handle device, int which) const {
        unsigned mhz = 0;
        return call<int(Handle, int, unsigned*)>("nvmlDeviceGetClockInfo", device, which, &mhz) == kOk ? static_cast<int>(mhz) : 0;
    }

private:
    void* library_;
    bool open_ = false;
};

std::string reasons_text(unsigned long long reasons) {
    constexpr struct {
        unsigned long long bit;
        const char* name;
    } kReasons[] = {{0x2, "application clocks"}, {0x4, "power cap"},         {0x8, "hardware slowdown"}, {0x10, "sync boost"},
                    {0x20, "software thermal"},  {0x40, "hardware thermal"}, {0x80, "power brake"}};
    std::string text;
    for (const auto& reason : kReasons) {
        if ((reasons & reason.bit) == 0) continue;
        if (!text.empty()) text += ',';
        text += reason.name;
    }
    return text.empty() ? "none" : text;
}

}  // namespace

BoardState board_state(int ordinal, const std::string& name) {
    BoardState state;
    const Nvml nvml;
    if (!nvml.is_open()) return state;
    char driver[kText] = {};
    if (nvml.call<int(char*, unsigned)>("nvmlSystemGetDriverVersion", driver, kText) == kOk) state.driver = driver;
    unsigned count = 0;
    Handle device = nullptr;
    if (nvml.call<int(unsigned*)>("nvmlDeviceGetCount_v2", &count) != kOk || static_cast<int>(count) != device_count())
        return state;
    if (nvml.call<int(unsigned, Handle*)>("nvmlDeviceGetHandleByIndex_v2", static_cast<unsigned>(ordinal), &device) != kOk)
        return state;
    if (nvml.device_text("nvmlDeviceGetName", device) != name) return state;
    state.uuid = nvml.device_text("nvmlDeviceGetUUID", device);
    state.sm_mhz = nvml.clock(device, kClockSm);
    state.memory_mhz = nvml.clock(device, kClockMemory);
    unsigned long long reasons = 0;
    if (nvml.call<int(Handle, unsigned long long*)>("nvmlDeviceGetCurrentClocksThrottleReasons", device, &reasons) == kOk)
        state.throttle = reasons_text(reasons);
    unsigned milliwatts = 0;
    if (nvml.call<int(Handle, unsigned*)>("nvmlDeviceGetEnforcedPowerLimit", device, &milliwatts) == kOk)
        state.power_limit_w = static_cast<int>(milliwatts / 1000);
    return state;
}

}  // namespace sapwood::cuda
