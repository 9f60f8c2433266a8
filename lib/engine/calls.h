// SPDX-License-Identifier: Apache-2.0
// What every kind of call does around its own arguments: is the plan for this engine, may it be made ready now, enqueue and count.
#pragma once

#include <atomic>
#include <cstdint>

#include "engine/kernel_service.h"
#include "kernel/render.h"

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

}  // namespace sapwood
