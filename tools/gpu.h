// SPDX-License-Identifier: Apache-2.0
// RAII over cuda/device.h for the tool: buffers, streams, events, graphs, and a whole case on the device.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <vector>

#include "cuda/device.h"
#include "support/inputs.h"

namespace sapwood::tool {

using DevicePtr = std::shared_ptr<cuda::Device>;

/// Of a captured graph that is timed.
inline constexpr int kGraphCalls = 20;
/// Copies of the data together, four times the L2 of an H100: none of a copy is in it when its turn comes.
inline constexpr double kRotateBytes = 200e6;

/// The device that an Engine of this target launches on; null if it launches on none ("host", "sm_90a", or no GPU).
DevicePtr device_of(const std::string& target, bool engine_has_device);

class DeviceBuffer {
public:
    DeviceBuffer() = default;
    DeviceBuffer(DevicePtr device, std::size_t bytes);
    DeviceBuffer(DevicePtr device, const void* from, std::size_t bytes);
    DeviceBuffer(DeviceBuffer&& other) noexcept { *this = std::move(other); }
    DeviceBuffer& operator=(DeviceBuffer&& other) noexcept;
    ~DeviceBuffer();
    template <class T = void>
    T* as() const {
        return reinterpret_cast<T*>(address_);
    }
    std::uint64_t address() const { return address_; }
    std::size_t bytes() const { return bytes_; }
    void upload(const void* from, std::size_t bytes, std::size_t at = 0);
    void download(void* to, std::size_t bytes) const;

private:
    DevicePtr device_;
    std::uint64_t address_ = 0;
    std::size_t bytes_ = 0;
};

/// K and V of a case, one copy.
struct DeviceKv {
    DeviceBuffer k, v;
};

/// The tensors of a case on the device; out and lse as bytes of NaN.
class DeviceCase {
public:
    /// Exact values.
    DeviceCase(DevicePtr device, const support::DecodeCase& which, const support::Inputs& inputs);
    /// Q exact, K and V a block of random values repeated: for timing alone, where exact ones would need too much host memory.
    DeviceCase(DevicePtr device, const support::DecodeCase& which, const support::InputOptions& options = {});

    const DecodeTensors& tensors() const { return tensors_; }
    DecodeTensors tensors_with(const DeviceKv& kv) const;
    void poison();
    /// Copies out and lse into `inputs`.
    void download(support::Inputs& inputs) const;

private:
    void rest(const support::DecodeCase& which, const void* q, std::size_t q_bytes);
    DevicePtr device_;
    DeviceKv kv_;
    DeviceBuffer q_, out_, lse_, pages_;
    DecodeTensors tensors_;
};

class GpuStream {
public:
    explicit GpuStream(DevicePtr device);
    ~GpuStream();
    GpuStream(const GpuStream&) = delete;
    GpuStream& operator=(const GpuStream&) = delete;
    void* get() const { return stream_; }
    cuda::Device& device() const { return *device_; }

    using Enqueue = std::function<void(void* stream)>;
    /// An executable graph of what `body` enqueues; lives until destroy_graphs() or the end of the stream object.
    void* capture(const Enqueue& body);
    void destroy_graphs();
    /// Times `measured` `samples` times by events, microseconds each; `before(i)` is enqueued ahead of each, outside the events.
    /// Nothing waits between samples, so that the device never idles.
    std::vector<double> time(int samples, const std::function<void(int)>& before, const std::function<void(int)>& measured);

private:
    DevicePtr device_;
    void* stream_ = nullptr;
    std::vector<void*> graphs_;
    std::vector<std::pair<void*, void*>> events_;
};

}  // namespace sapwood::tool
