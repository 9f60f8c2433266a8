// SPDX-License-Identifier: Apache-2.0
#include "engine/device_memory.h"

#include <cstring>
#include <new>

#include "base/error.h"

namespace sapwood {
namespace {

class HostMemory final : public Memory {
public:
    void* allocate(std::size_t bytes) override {
        void* pointer = ::operator new(bytes, kAlign);
        std::memset(pointer, 0, bytes);
        return pointer;
    }
    void free(void* pointer) noexcept override { ::operator delete(pointer, kAlign); }
    void copy_in(void* to, const void* from, std::size_t bytes, void*) override { std::memcpy(to, from, bytes); }
    bool capturing(void*) override { return false; }

private:
    static constexpr std::align_val_t kAlign{256};
};

class CudaMemory final : public Memory {
public:
    explicit CudaMemory(std::shared_ptr<cuda::Device> device) : device_(std::move(device)) {}
    void* allocate(std::size_t bytes) override {
        const std::uint64_t pointer = device_->allocate(bytes);
        try {
            device_->fill(pointer, 0, bytes, nullptr);
            device_->synchronize(nullptr);
        } catch (...) {
            device_->free(pointer);
            throw;
        }
        return reinterpret_cast<void*>(pointer);
    }
    void free(void* pointer) noexcept override { device_->free(reinterpret_cast<std::uint64_t>(pointer)); }
    void copy_in(void* to, const void* from, std::size_t bytes, void* stream) override {
        device_->copy_to_device(reinterpret_cast<std::uint64_t>(to), from, bytes, stream);
    }
    bool capturing(void* stream) override { return device_->capturing(stream); }

private:
    std::shared_ptr<cuda::Device> device_;
};

}  // namespace

std::unique_ptr<Memory> host_memory() { return std::make_unique<HostMemory>(); }
std::unique_ptr<Memory> cuda_memory(std::shared_ptr<cuda::Device> device) {
    return std::make_unique<CudaMemory>(std::move(device));
}

}  // namespace sapwood
