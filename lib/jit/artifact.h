// SPDX-License-Identifier: Apache-2.0
// A compiled kernel as bytes, with what is known of it. Knows nothing of attention.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace sapwood::jit {

enum class PayloadKind : std::uint32_t { cubin = 1, host_object = 3 };  // 2 is reserved for ltoir

/// What the kernel takes of an SM, as the compiler reports it. All zero for a host object.
struct Resources {
    int registers = 0;      // a thread
    int static_shared = 0;  // bytes a block
    int spill_bytes = 0;    // local memory a thread: spills and indexed arrays
    int max_threads = 0;    // a block, 0 if not known
};

struct Artifact {
    PayloadKind kind = PayloadKind::cubin;
    std::string name;      // for people: the canonical text of the kernel key
    std::string entry;     // symbol to look up (extern "C", never mangled)
    std::string target;    // "sm_90a", "host"
    std::string compiler;  // exact build that made it
    std::string log;       // warnings of the compiler, truncated
    double compile_ms = 0;
    Resources resources;
    std::vector<std::byte> payload;
};

}  // namespace sapwood::jit
