// SPDX-License-Identifier: Apache-2.0
// Private to this room: the retained primary context and the kernels loaded in it.
#pragma once

#include <memory>
#include <string>

#include "cuda/device.h"
#include "cuda/driver.h"
#include "jit/loaded_kernel.h"

namespace sapwood::cuda {

/// Shared by a Device and every kernel loaded through it, so that a kernel may outlive its Device.
struct PrimaryContext {
    explicit PrimaryContext(DeviceHandle which);
    ~PrimaryContext();
    PrimaryContext(const PrimaryContext&) = delete;
    PrimaryContext& operator=(const PrimaryContext&) = delete;

    const Api& api;
    DeviceHandle device;
    Context handle = nullptr;
};

class CudaKernel final : public jit::LoadedKernel {
public:
    /// Checks the artifact against the device, loads it and sets its shared memory limit. Throws kDriver, kUnsupportedDevice.
    CudaKernel(std::shared_ptr<PrimaryContext> context, const DeviceInfo& info, const jit::Artifact& artifact,
               std::uint32_t dynamic_shared);
    ~CudaKernel() override;
    void launch(const jit::LaunchShape& shape, const void* params, std::size_t params_bytes, void* stream) override;
    int occupancy(std::uint32_t threads, std::uint32_t dynamic_shared) const;

private:
    void configure(const DeviceInfo& info, const jit::Artifact& artifact, std::uint32_t dynamic_shared);
    void unload() noexcept;
    [[noreturn]] void fail_launch(Result result, const jit::LaunchShape& shape) const;

    std::shared_ptr<PrimaryContext> context_;
    Module module_ = nullptr;
    Function function_ = nullptr;
    std::string name_;
    std::uint32_t allowed_shared_ = 0;  // dynamic bytes a launch may ask
    int max_threads_ = 0;               // a block, as the compiler bounded it
    bool can_overlap_ = false;          // the device and the driver know dependent launches
};

}  // namespace sapwood::cuda
