// SPDX-License-Identifier: Apache-2.0
#include "cuda/sm_table.h"

#include "base/error.h"

namespace sapwood::cuda {
namespace {

constexpr int kKib = 1024;
constexpr std::int64_t kMib = 1024 * 1024, kGib = 1024 * kMib;

// Per-SM limits: "Technical Specifications per Compute Capability" of the CUDA programming guide. A block may opt in to all of an
// SM's shared memory but the 1 KiB that the driver reserves for each block. Board figures: the vendor's data sheets.
constexpr SmFacts kTable[] = {
    {.number = 80,
     .board = "A100 SXM 80 GB",
     .sms = 108,
     .max_shared_per_block_optin = 163 * kKib,
     .max_shared_per_sm = 164 * kKib,
     .max_registers_per_sm = 65536,
     .max_threads_per_sm = 2048,
     .l2_bytes = 40 * kMib,
     .memory_bytes = 80 * kGib,
     .memory_gb_per_s = 2039},
    {.number = 86,
     .board = "A10",
     .sms = 72,
     .max_shared_per_block_optin = 99 * kKib,
     .max_shared_per_sm = 100 * kKib,
     .max_registers_per_sm = 65536,
     .max_threads_per_sm = 1536,
     .l2_bytes = 6 * kMib,
     .memory_bytes = 24 * kGib,
     .memory_gb_per_s = 600},
    {.number = 87,
     .board = "Jetson AGX Orin",
     .sms = 16,
     .max_shared_per_block_optin = 163 * kKib,
     .max_shared_per_sm = 164 * kKib,
     .max_registers_per_sm = 65536,
     .max_threads_per_sm = 1536,
     .l2_bytes = 4 * kMib,
     .memory_bytes = 64 * kGib,
     .memory_gb_per_s = 204.8},
    {.number = 89,
     .board = "L40S",
     .sms = 142,
     .max_shared_per_block_optin = 99 * kKib,
     .max_shared_per_sm = 100 * kKib,
     .max_registers_per_sm = 65536,
     .max_threads_per_sm = 1536,
     .l2_bytes = 96 * kMib,
     .memory_bytes = 48 * kGib,
     .memory_gb_per_s = 864},
    {.number = 90,
     .board = "H100 SXM",
     .sms = 132,
     .max_shared_per_block_optin = 227 * kKib,
     .max_shared_per_sm = 228 * kKib,
     .max_registers_per_sm = 65536,
     .max_threads_per_sm = 2048,
     .l2_bytes = 50 * kMib,
     .memory_bytes = 80 * kGib,
     .memory_gb_per_s = 3350},
    {.number = 100,
     .board = "B200",
     .sms = 148,
     .max_shared_per_block_optin = 227 * kKib,
     .max_shared_per_sm = 228 * kKib,
     .max_registers_per_sm = 65536,
     .max_threads_per_sm = 2048,
     .l2_bytes = 126 * kMib,
     .memory_bytes = 180 * kGib,
     .memory_gb_per_s = 8000},
    {.number = 103,
     .board = "B300",
     .sms = 148,
     .max_shared_per_block_optin = 227 * kKib,
     .max_shared_per_sm = 228 * kKib,
     .max_registers_per_sm = 65536,
     .max_threads_per_sm = 2048,
     .l2_bytes = 126 * kMib,
     .memory_bytes = 270 * kGib,
     .memory_gb_per_s = 8000},
    {.number = 120,
     .board = "GeForce RTX 5090",
     .sms = 170,
     .max_shared_per_block_optin = 99 * kKib,
     .max_shared_per_sm = 100 * kKib,
     .max_registers_per_sm = 65536,
     .max_threads_per_sm = 1536,
     .l2_bytes = 96 * kMib,
     .memory_bytes = 32 * kGib,
     .memory_gb_per_s = 1792},
    {.number = 121,
     .board = "GB10",
     .sms = 48,
     .max_shared_per_block_optin = 99 * kKib,
     .max_shared_per_sm = 100 * kKib,
     .max_registers_per_sm = 65536,
     .max_threads_per_sm = 1536,
     .l2_bytes = 24 * kMib,
     .memory_bytes = 128 * kGib,
     .memory_gb_per_s = 273},
};

}  // namespace

std::span<const SmFacts> sm_table() { return kTable; }

const SmFacts* find_sm(int number) noexcept {
    for (const SmFacts& facts : kTable) {
        if (facts.number == number) return &facts;
    }
    return nullptr;
}

std::optional<Target> parse_target(std::string_view text) noexcept {
    if (!text.starts_with("sm_")) return std::nullopt;
    text.remove_prefix(3);
    int number = 0;
    std::size_t digits = 0;
    for (; digits < text.size() && digits < 4 && text[digits] >= '0' && text[digits] <= '9'; ++digits)
        number = number * 10 + (text[digits] - '0');
    const std::string_view suffix = text.substr(digits);
    if (digits < 2 || digits > 3 || !(suffix.empty() || suffix == "a" || suffix == "f")) return std::nullopt;
    return Target{.major = number / 10, .minor = number % 10, .suffix = suffix.empty() ? '\0' : suffix[0]};
}

std::string target_for(int major, int minor) { return "sm_" + std::to_string(major * 10 + minor) + (major >= 9 ? "a" : ""); }

bool target_runs_on(std::string_view target, int major, int minor) noexcept {
    const auto parsed = parse_target(target);
    if (!parsed || parsed->major != major) return false;
    return parsed->suffix == 'a' ? parsed->minor == minor : parsed->minor <= minor;
}

DeviceInfo offline_device(std::string_view target) {
    const auto parsed = parse_target(target);
    const SmFacts* facts = parsed ? find_sm(parsed->number()) : nullptr;
    if (facts == nullptr) {
        std::string known;
        for (const SmFacts& each : kTable) known += " " + target_for(each.number / 10, each.number % 10);
        raise(ErrorCode::kUnsupportedDevice,
              "target \"" + std::string(target) + "\" is not known without its GPU; known are" + known);
    }
    return DeviceInfo{.ordinal = -1,  // no device: nothing can be opened with it
                      .name = facts->board,
                      .major = parsed->major,
                      .minor = parsed->minor,
                      .sms = facts->sms,
                      .max_shared_per_block_optin = facts->max_shared_per_block_optin,
                      .max_shared_per_sm = facts->max_shared_per_sm,
                      .reserved_shared_per_block = facts->max_shared_per_sm - facts->max_shared_per_block_optin,
                      .max_registers_per_sm = facts->max_registers_per_sm,
                      .max_threads_per_sm = facts->max_threads_per_sm,
                      .l2_bytes = facts->l2_bytes,
                      .memory_bytes = facts->memory_bytes,
                      .driver_version = 0};
}

}  // namespace sapwood::cuda
