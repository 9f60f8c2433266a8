// SPDX-License-Identifier: Apache-2.0
#include "engine/target.h"

#include <charconv>

#include "base/error.h"
#include "cuda/nvrtc.h"
#include "cuda/sm_table.h"
#include "host/host.h"

namespace sapwood {

Limits limits_of(const cuda::DeviceInfo& info, const std::string& target) {
    return {.target = target,
            .sm = info.major * 10 + info.minor,
            .sms = info.sms,
            .max_shared_block = info.max_shared_per_block_optin,
            .max_shared_sm = info.max_shared_per_sm,
            .reserved_shared_block = info.reserved_shared_per_block,
            .registers_sm = info.max_registers_per_sm};
}

namespace {

TargetSetup open_host() {
    // The host target imitates a small sm_90: the same tiles and lists as on the real one, on a grid that a few cores get through.
    cuda::DeviceInfo info = cuda::offline_device("sm_90a");
    info.sms = 6;
    TargetSetup setup;
    setup.target = "host";
    setup.device_name = "host CPU, imitating sm_90 with " + std::to_string(info.sms) + " SMs";
    setup.limits = limits_of(info, "host");
    setup.compiler = std::make_unique<host::Compiler>();
    setup.memory = host_memory();
    setup.is_host = true;
    return setup;
}

TargetSetup open_cuda(int ordinal) {
    TargetSetup setup;
    setup.device = cuda::Device::open(ordinal);
    const cuda::DeviceInfo& info = setup.device->info();
    if (info.major < 8) {
        raise(ErrorCode::kUnsupportedDevice, "device " + std::to_string(ordinal) + " (" + info.name + ") is SM " +
                                                 std::to_string(info.major) + "." + std::to_string(info.minor) +
                                                 "; Sapwood's kernels need 8.0 or later");
    }
    setup.target = cuda::target_for(info.major, info.minor);
    setup.device_name = info.name;
    setup.limits = limits_of(info, setup.target);
    setup.compiler = std::make_unique<cuda::Nvrtc>();
    setup.memory = cuda_memory(setup.device);
    return setup;
}

TargetSetup open_offline(const std::string& target) {
    const cuda::DeviceInfo info = cuda::offline_device(target);
    TargetSetup setup;
    setup.target = target;
    setup.device_name = info.name + " (offline: compile and inspect only)";
    setup.limits = limits_of(info, target);
    setup.compiler = std::make_unique<cuda::Nvrtc>();
    return setup;
}

}  // namespace

TargetSetup open_target(const EngineOptions& options) {
    const std::string& asked = options.target;
    if (asked == "host") return open_host();
    if (options.compile_only && !asked.starts_with("sm_"))
        raise(ErrorCode::kInvalidArgument, "compile_only needs an SM such as \"sm_90a\" or \"host\", not \"" + asked + "\"");
    if (asked == "auto") return cuda::device_count() > 0 ? open_cuda(0) : open_host();
    if (asked == "cuda" || asked.starts_with("cuda:")) {
        int ordinal = 0;
        if (asked != "cuda") {
            const char* end = asked.data() + asked.size();
            if (const auto parsed = std::from_chars(asked.data() + 5, end, ordinal);
                parsed.ec != std::errc{} || parsed.ptr != end) {
                raise(ErrorCode::kInvalidArgument, "target \"" + asked + "\" is not cuda:<number>");
            }
        }
        if (const std::string problem = cuda::driver_problem(); !problem.empty()) {
            raise(ErrorCode::kUnsupportedDevice,
                  "target \"" + asked + "\" needs a GPU: " + problem + "; use \"host\" or an SM such as \"sm_90a\"");
        }
        return open_cuda(ordinal);
    }
    if (asked.starts_with("sm_")) {
        if (options.compile_only) return open_offline(asked);
        // On a machine whose device is of that SM the kernels run; elsewhere they are compiled for it.
        for (int i = 0; i < cuda::device_count(); ++i) {
            const auto device = cuda::Device::open(i);
            if (cuda::target_for(device->info().major, device->info().minor) == asked) return open_cuda(i);
        }
        return open_offline(asked);
    }
    raise(ErrorCode::kInvalidArgument, "target \"" + asked + "\" is none of \"auto\", \"cuda\", \"cuda:N\", \"host\", \"sm_XX\"");
}

}  // namespace sapwood
