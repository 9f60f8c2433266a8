// SPDX-License-Identifier: Apache-2.0
// RAII over the dlopen'd driver API. Nothing here needs libcuda to link or to start.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

#include "jit/artifact.h"
#include "jit/loaded_kernel.h"

namespace sapwood::cuda {

/// What planning and pruning need to know of a device; plain data.
struct DeviceInfo {
    int ordinal = 0;
    std::string name;
    int major = 0, minor = 0, sms = 0;
    int max_shared_per_block_optin = 0, max_shared_per_sm = 0, reserved_shared_per_block = 0;
    int max_registers_per_sm = 0, max_threads_per_sm = 0;
    std::int64_t l2_bytes = 0, memory_bytes = 0;
    int driver_version = 0;  // e.g. 13000
};

/// A tensor [rows, heads, dim] of 16-bit elements from which tiles [box_rows, dim] of one head are copied.
struct TensorView {
    const void* data = nullptr;
    bool bf16 = true;
    std::int64_t rows = 0, heads = 0, dim = 0;       // dim: a multiple of 64
    std::int64_t token_stride = 0, head_stride = 0;  // bytes, multiples of 16
    std::int64_t box_rows = 0;                       // at most 256
    std::int64_t box_heads = 0;                      // 0; or a tile is the rows of so many heads, group of 64 elements by group
    std::int64_t box_groups = 0;  // 0; or so many groups of eight rows in place of box_rows, all 64 elements of one before the next
};

/// Why there is no usable driver; empty if there is one.
std::string driver_problem();
int device_count();  // 0 without a driver

/// The primary context of one device, retained while the object lives. Every call makes it current on the calling thread for its
/// own duration (push/pop), so that a host application's context is never disturbed.
class Device {
public:
    static std::shared_ptr<Device> open(int ordinal);  // throws kUnsupportedDevice, kDriver
    ~Device();
    const DeviceInfo& info() const noexcept;

    std::uint64_t allocate(std::size_t bytes);  // 256-byte aligned; throws kDriver naming asked and free bytes
    void free(std::uint64_t pointer) noexcept;
    void fill(std::uint64_t pointer, std::uint8_t value, std::size_t bytes, void* stream);     // async
    void copy_to_device(std::uint64_t to, const void* from, std::size_t bytes, void* stream);  // async from pinned, else staged
    void copy_to_host(void* to, std::uint64_t from, std::size_t bytes, void* stream);          // synchronous
    void* allocate_pinned(std::size_t bytes);
    void free_pinned(void* pointer) noexcept;
    void synchronize(void* stream);
    bool capturing(void* stream);

    /// Writes the 128 bytes (64-byte aligned) by which the copy engine knows this tensor: tiles as panels of 64 elements, swizzled
    /// by 128 bytes. Host work, about a microsecond. Throws kDriver, kUnsupportedDevice.
    void encode_tensor_map(const TensorView& view, void* map);

    /// Loads a cubin eagerly (no lazy first launch) and allows `dynamic_shared` bytes. Throws kDriver, kUnsupportedDevice.
    std::unique_ptr<jit::LoadedKernel> load(const jit::Artifact& artifact, std::uint32_t dynamic_shared);
    int occupancy(const jit::LoadedKernel& kernel, std::uint32_t threads, std::uint32_t dynamic_shared);

    // For the benchmark tool: streams, events, graphs.
    void* create_stream();
    void destroy_stream(void* stream) noexcept;
    void* create_event();
    void destroy_event(void* event) noexcept;
    void record(void* event, void* stream);
    double elapsed_us(void* start, void* stop);  // waits for stop
    void begin_capture(void* stream);
    void* end_capture(void* stream);  // an executable graph
    void launch_graph(void* graph, void* stream);
    void destroy_graph(void* graph) noexcept;

    struct Impl;

private:
    explicit Device(std::unique_ptr<Impl> impl);
    std::unique_ptr<Impl> impl_;
};

}  // namespace sapwood::cuda
