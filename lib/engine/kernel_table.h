// SPDX-License-Identifier: Apache-2.0
// Prepared kernels by key: a lock-free look-up. Entries are published once and live as long as the table.
#pragma once

#include <atomic>
#include <cstdint>
#include <cstring>
#include <memory>
#include <mutex>
#include <vector>

#include "engine/kernel.h"
#include "kernel/key.h"

namespace sapwood {

class KernelTable {
public:
    KernelTable() : slots_(kSlots) {}

    /// Null if not published.
    Kernel* find(const KernelKey& key) const noexcept {
        for (std::size_t at = hash(key), tries = 0; tries < kSlots; ++at, ++tries) {
            Kernel* kernel = slots_[at % kSlots].load(std::memory_order_acquire);
            if (kernel == nullptr || kernel->key == key) return kernel;
        }
        return nullptr;
    }

    /// Every published kernel, in no order.
    template <class Visit>
    void each(const Visit& visit) const {
        for (const auto& slot : slots_) {
            if (Kernel* kernel = slot.load(std::memory_order_acquire)) visit(*kernel);
        }
    }

    /// The kernel under this key: `kernel`, or the one that another thread published first.
    Kernel* publish(std::shared_ptr<Kernel> kernel) {
        std::lock_guard lock(mutex_);
        if (Kernel* present = find(kernel->key)) return present;
        owned_.push_back(kernel);
        // A full table is no error: the plan keeps its kernel, only the look-up by key misses.
        if (owned_.size() < kSlots / 2) {
            std::size_t at = hash(kernel->key);
            while (slots_[at % kSlots].load(std::memory_order_relaxed) != nullptr) ++at;
            slots_[at % kSlots].store(kernel.get(), std::memory_order_release);
        }
        return kernel.get();
    }

private:
    static constexpr std::size_t kSlots = 4096;

    static std::size_t hash(const KernelKey& key) noexcept {
        std::uint64_t words[4];
        std::memcpy(words, &key, sizeof(words));
        std::uint64_t h = 0x9E3779B97F4A7C15u;
        for (const std::uint64_t word : words) {
            h = (h ^ word) * 0xBF58476D1CE4E5B9u;
            h ^= h >> 29;
        }
        return static_cast<std::size_t>(h);
    }

    std::vector<std::atomic<Kernel*>> slots_;
    std::vector<std::shared_ptr<Kernel>> owned_;
    std::mutex mutex_;
};

}  // namespace sapwood
