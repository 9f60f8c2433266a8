// SPDX-License-Identifier: Apache-2.0
#include "base/process.h"

#include <pthread.h>

#include <atomic>

namespace sapwood {
namespace {

std::atomic<std::uint64_t> g_generation{1};

}  // namespace

std::uint64_t process_generation() noexcept {
    static const int registered = ::pthread_atfork(nullptr, nullptr, [] { g_generation.fetch_add(1, std::memory_order_relaxed); });
    static_cast<void>(registered);
    return g_generation.load(std::memory_order_relaxed);
}

}  // namespace sapwood
