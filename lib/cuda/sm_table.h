// SPDX-License-Identifier: Apache-2.0
// What is known of each SM without a GPU at hand: for planning, pruning and inspection on build machines.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>

#include "cuda/device.h"

namespace sapwood::cuda {

/// One SM version on the board that usually carries it. Counts a block or an SM; sizes in bytes.
struct SmFacts {
    int number;  // 90 for sm_90
    const char* board;
    int sms;
    int max_shared_per_block_optin;
    int max_shared_per_sm;
    int max_registers_per_sm;
    int max_threads_per_sm;
    std::int64_t l2_bytes;
    std::int64_t memory_bytes;
    double memory_gb_per_s;  // 10^9 bytes, as the vendor states it
};

std::span<const SmFacts> sm_table();
const SmFacts* find_sm(int number) noexcept;  // null if not in the table

/// "sm_90a" taken apart. The suffix: 0 (runs on this and later minor versions of the major), 'a' (this version alone), 'f'
/// (family).
struct Target {
    int major = 0, minor = 0;
    char suffix = 0;
    int number() const noexcept { return major * 10 + minor; }
};
std::optional<Target> parse_target(std::string_view text) noexcept;

/// The most specific target of a device: "sm_80", "sm_90a", "sm_100a". From 9.0 on only the 'a' target has wgmma, TMA multicast and
/// such.
std::string target_for(int major, int minor);

/// Whether a cubin of `target` can run on a device; false as well for what is no target.
bool target_runs_on(std::string_view target, int major, int minor) noexcept;

/// DeviceInfo of the usual board of a target, without a GPU. Throws kUnsupportedDevice naming the targets that are known.
DeviceInfo offline_device(std::string_view target);

}  // namespace sapwood::cuda
