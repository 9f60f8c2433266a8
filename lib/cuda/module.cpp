// SPDX-License-Identifier: Apache-2.0
#include "cuda/module.h"

#include <cstring>
#include <utility>

#include "base/error.h"
#include "cuda/sm_table.h"

namespace sapwood::cuda {
namespace {

std::string device_text(const DeviceInfo& info) {
    return info.name + " (device " + std::to_string(info.ordinal) + ", SM " + std::to_string(info.major) + "." +
           std::to_string(info.minor) + ")";
}

/// The driver takes some damaged images without a word (64 zero bytes load as empty PTX), so the header is checked here.
void check_image(const jit::Artifact& artifact) {
    constexpr std::size_t kHeaderBytes = 64;  // Elf64_Ehdr
    constexpr std::uint16_t kMachineCuda = 190;
    std::uint16_t machine = 0;
    const bool elf = artifact.kind == jit::PayloadKind::cubin && artifact.payload.size() > kHeaderBytes &&
                     std::memcmp(artifact.payload.data(), "\177ELF", 4) == 0;
    if (elf) std::memcpy(&machine, artifact.payload.data() + 18, sizeof machine);
    if (!elf || machine != kMachineCuda)
        raise(ErrorCode::kDriver, "kernel " + artifact.name + " for " + artifact.target + " holds no cubin but " +
                                      std::to_string(artifact.payload.size()) +
                                      " other bytes; it was not made by NVRTC, or was damaged: compile it again");
}

void check_target(const DeviceInfo& info, const jit::Artifact& artifact) {
    if (target_runs_on(artifact.target, info.major, info.minor)) return;
    raise(ErrorCode::kUnsupportedDevice, "kernel " + artifact.name + " was compiled for " + artifact.target +
                                             " and cannot run on " + device_text(info) + "; compile it for " +
                                             target_for(info.major, info.minor));
}

void check_shared(const DeviceInfo& info, const jit::Artifact& artifact, std::int64_t static_shared, std::int64_t dynamic_shared) {
    if (static_shared + dynamic_shared <= info.max_shared_per_block_optin) return;
    raise(ErrorCode::kUnsupportedDevice, "kernel " + artifact.name + " asks for " + std::to_string(static_shared + dynamic_shared) +
                                             " bytes of shared memory a block (" + std::to_string(dynamic_shared) + " dynamic, " +
                                             std::to_string(static_shared) + " static); " + device_text(info) + " allows " +
                                             std::to_string(info.max_shared_per_block_optin) +
                                             ": choose smaller tiles or fewer stages");
}

}  // namespace

PrimaryContext::PrimaryContext(DeviceHandle which) : api(cuda::api()), device(which) {
    if (const Result result = api.cuDevicePrimaryCtxRetain(&handle, device); result != kSuccess)
        fail(result, "cuDevicePrimaryCtxRetain", "the device may be out of memory, or in exclusive use by another process");
}

PrimaryContext::~PrimaryContext() {
    // No context needs to be current for this one.
    if (const Api* alive = api_if_alive()) alive->cuDevicePrimaryCtxRelease(device);
}

CudaKernel::CudaKernel(std::shared_ptr<PrimaryContext> context, const DeviceInfo& info, const jit::Artifact& artifact,
                       std::uint32_t dynamic_shared)
    : context_(std::move(context)), name_(artifact.name), allowed_shared_(dynamic_shared) {
    check_image(artifact);
    check_target(info, artifact);
    check_shared(info, artifact, artifact.resources.static_shared, dynamic_shared);
    const Api& api = context_->api;
    const ContextGuard guard(api, context_->handle);
    if (const Result result = api.cuModuleLoadData(&module_, artifact.payload.data()); result != kSuccess) {
        std::string advice =
            "kernel " + artifact.name + " for " + artifact.target + " by " + artifact.compiler + ", on " + device_text(info);
        if (result == kInvalidImage || result == kNoBinaryForGpu)
            advice +=
                " with a driver for CUDA " + std::to_string(info.driver_version / 1000) + "." +
                std::to_string(info.driver_version % 1000 / 10) +
                ": the entry is damaged (clear the cache), or NVRTC is newer than the driver (update the driver or use its NVRTC)";
        fail(result, "cuModuleLoadData", advice);
    }
    try {
        configure(info, artifact, dynamic_shared);
    } catch (...) {
        unload();
        throw;
    }
}

void CudaKernel::configure(const DeviceInfo& info, const jit::Artifact& artifact, std::uint32_t dynamic_shared) {
    const Api& api = context_->api;
    if (const Result result = api.cuModuleGetFunction(&function_, module_, artifact.entry.c_str()); result != kSuccess)
        fail(result, "cuModuleGetFunction", "entry \"" + artifact.entry + "\" of kernel " + artifact.name);
    // Under lazy loading (the driver's default) the code goes to the device only now; older drivers do it in the call above.
    if (api.cuFuncLoad != nullptr) check(api.cuFuncLoad(function_), "cuFuncLoad");
    can_overlap_ = info.major >= 9 && api.cuLaunchKernelEx != nullptr;
    int static_shared = 0;
    check(api.cuFuncGetAttribute(&static_shared, kFunctionStaticShared, function_), "cuFuncGetAttribute");
    check(api.cuFuncGetAttribute(&max_threads_, kFunctionMaxThreads, function_), "cuFuncGetAttribute");
    check_shared(info, artifact, static_shared, dynamic_shared);
    if (dynamic_shared == 0) return;
    if (const Result result = api.cuFuncSetAttribute(function_, kFunctionMaxDynamicShared, static_cast<int>(dynamic_shared));
        result != kSuccess)
        fail(result, "cuFuncSetAttribute",
             "kernel " + artifact.name + " asked for " + std::to_string(dynamic_shared) + " bytes of dynamic shared memory; " +
                 device_text(info) + " allows " + std::to_string(info.max_shared_per_block_optin) + " with " +
                 std::to_string(static_shared) + " static");
    // A hint, so that as many blocks as the planner counted on fit an SM. A driver may refuse it and still be right.
    api.cuFuncSetAttribute(function_, kFunctionCarveout, kCarveoutMaxShared);
}

void CudaKernel::unload() noexcept {
    if (module_ != nullptr) release_quietly(context_->handle, [this](const Api& api) { api.cuModuleUnload(module_); });
    module_ = nullptr;
}

CudaKernel::~CudaKernel() { unload(); }

void CudaKernel::launch(const jit::LaunchShape& shape, const void* params, std::size_t /*params_bytes: the module knows it*/,
                        void* stream) {
    const Api& api = context_->api;
    void* arguments[] = {const_cast<void*>(params)};  // the driver copies from it before it returns
    LaunchAttribute overlap = {.id = kLaunchOverlap, .value = 1};
    const LaunchConfig config = {.grid_x = shape.grid,
                                 .block_x = shape.block,
                                 .shared_bytes = shape.shared_bytes,
                                 .stream = static_cast<Stream>(stream),
                                 .attributes = &overlap,
                                 .attribute_count = 1};
    const auto enqueue = [&] {
        if (shape.overlap && can_overlap_) return api.cuLaunchKernelEx(&config, function_, arguments, nullptr);
        return api.cuLaunchKernel(function_, shape.grid, 1, 1, shape.block, 1, 1, shape.shared_bytes, static_cast<Stream>(stream),
                                  arguments, nullptr);
    };
    Result result = kSuccess;
    {
        const ContextGuard guard(api, context_->handle);
        result = enqueue();
    }
    if (result != kSuccess) [[unlikely]]
        fail_launch(result, shape);
}

void CudaKernel::fail_launch(Result result, const jit::LaunchShape& shape) const {
    fail(result, "cuLaunchKernel",
         "kernel " + name_ + " with " + std::to_string(shape.grid) + " blocks of " + std::to_string(shape.block) +
             " threads (at most " + std::to_string(max_threads_) + ") and " + std::to_string(shape.shared_bytes) +
             " bytes of dynamic shared memory (at most " + std::to_string(allowed_shared_) + " since it was loaded)");
}

int CudaKernel::occupancy(std::uint32_t threads, std::uint32_t dynamic_shared) const {
    const ContextGuard guard(context_->api, context_->handle);
    int blocks = 0;
    check(context_->api.cuOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, function_, static_cast<int>(threads), dynamic_shared),
          "cuOccupancyMaxActiveBlocksPerMultiprocessor");
    return blocks;
}

}  // namespace sapwood::cuda
