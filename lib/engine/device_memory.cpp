// SPDX-License-Identifier: Apache-2.0
#include "engine/device_memory.h"

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <new>

#include "base/error.h"

namespace sapwood {
namespace {

class HostMemory final : public Memory {
public:
    /// From calloc, whose large blocks are zero pages that cost nothing until they are touched: most of a plan's room never is.
    void* allocate(std::size_t bytes) override {
        void* const block = std::calloc(1, bytes + kAlign);
        if (block == nullptr) throw std::bad_alloc();
        void* const pointer = static_cast<char*>(block) + kAlign - reinterpret_cast<std::uintptr_t>(block) % kAlign;
        std::memcpy(static_cast<char*>(pointer) - sizeof(block), &block, sizeof(block));
        return pointer;
    }
    void free(void* pointer) noexcept override {
        if (pointer == nullptr) return;
        void* block = nullptr;
        std::memcpy(&block, static_cast<char*>(pointer) - sizeof(block), sizeof(block));
        std::free(block);
    }
    void copy_in(void* to, const void* from, std::size_t bytes, void*) override { std::memcpy(to, from, bytes); }
    bool capturing(void*) override { return false; }
    abi::TensorMap tensor_map(const cuda::TensorView& view) override {
        const abi::HostTensorMap numbers = {view.data,
                                            view.token_stride,
                                            view.head_stride,
                                            static_cast<unsigned long long>(view.rows),
                                            static_cast<unsigned long long>(view.box_rows),
                                            static_cast<unsigned long long>(view.dim / 64),
                                            static_cast<unsigned long long>(view.box_heads),
                                            static_cast<unsigned long long>(view.box_groups)};
        abi::TensorMap map{};
        std::memcpy(&map, &numbers, sizeof(numbers));
        return map;
    }

private:
    static constexpr std::size_t kAlign = 256;
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
    abi::TensorMap tensor_map(const cuda::TensorView& view) override {
        abi::TensorMap map{};
        device_->encode_tensor_map(view, &map);
        return map;
    }

private:
    std::shared_ptr<cuda::Device> device_;
};

}  // namespace

std::unique_ptr<Memory> host_memory() { return std::make_unique<HostMemory>(); }
std::unique_ptr<Memory> cuda_memory(std::shared_ptr<cuda::Device> device) {
    return std::make_unique<CudaMemory>(std::move(device));
}

}  // namespace sapwood
