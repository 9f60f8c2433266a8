// SPDX-License-Identifier: Apache-2.0
// What every kind of call does around its own arguments: is the plan for this engine, may it be made ready now, enqueue and count.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>

#include "engine/kernel_service.h"
#include "kernel/render.h"
#include "packed_abi.h"

namespace sapwood {

/// Throws kUnsupportedDevice if a plan with these limits was made for another device than the service's.
void check_made_for(const Limits& plan, const KernelService& service);

/// Throws kNotPrepared if the stream is capturing: what a plan still lacks cannot be made then. `prepared`: its kernel and buffers
/// are there, its list is not.
void check_not_capturing(const KernelService& service, void* stream, bool prepared);

/// The buffers that a plan has on this engine; null if there are none or they are another engine's.
template <class Buffers, class Plan>
Buffers* buffers_on(const Plan& plan, const KernelService& service) {
    auto* const buffers = static_cast<Buffers*>(plan.device.get());
    return buffers != nullptr && buffers->engine() == service.identity ? buffers : nullptr;
}

template <class Params>
void enqueue(KernelService& service, Kernel& kernel, std::int64_t grid, const Params& params, void* stream) {
    const jit::LaunchShape shape = {.grid = static_cast<std::uint32_t>(grid),
                                    .block = threads_of(kernel.key),
                                    .shared_bytes = shared_bytes_of(kernel.key),
                                    .overlap = service.options.overlap_launches};
    kernel.loaded->launch(shape, &params, sizeof(params), stream);
    service.counters.launches.fetch_add(1, std::memory_order_relaxed);
    kernel.calls.fetch_add(1, std::memory_order_relaxed);
}

/// The kernels that make the tile lists of a pack with arrays from the arrays of a call.
template <class Plan, class Kernels, class Call>
void enqueue_lists(KernelService& service, const Plan& plan, const Kernels& kernels, const Call& call, void* stream) {
    constexpr std::int64_t kBlocks = 8;  // an SM, at most
    const std::int64_t warps = abi::kArrayThreads / 32, most = plan.limits.sms * kBlocks;
    const auto grid = [&](std::int64_t pieces) { return std::min((pieces + warps - 1) / warps, most); };
    if (plan.arrays.bounds > 0) enqueue(service, *kernels.bounds, grid(plan.arrays.bounds), call.bounds, stream);
    if (!plan.arrays.blocks.empty()) enqueue(service, *kernels.tiles, grid(std::ssize(plan.arrays.blocks)), call.tiles, stream);
}

}  // namespace sapwood
