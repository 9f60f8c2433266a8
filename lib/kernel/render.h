// SPDX-License-Identifier: Apache-2.0
// From a key to the unit that a compiler is given: about thirty lines, slots filled by name.
#pragma once

#include <cstdint>
#include <map>
#include <string>

#include "jit/compile.h"
#include "kernel/key.h"

namespace sapwood {

/// Everything the compiler needs for this key. The same key gives the same text on every machine.
jit::CompileRequest render(const KernelKey& key);

/// What a family of kernels says of one key: the template, the function in it, and what goes into its slots ("key" is filled in for
/// all of them).
struct KernelSource {
    std::string text, entry;
    std::map<std::string, std::string> slots;
};
/// Of a block.
struct KernelResources {
    std::uint32_t threads = 0, shared_bytes = 0;
};
const char* score_policy(Score score);  // the class in templates/attention/score.h
KernelResources resources_of(const KernelKey& key);
inline std::uint32_t threads_of(const KernelKey& key) { return resources_of(key).threads; }
inline std::uint32_t shared_bytes_of(const KernelKey& key) { return resources_of(key).shared_bytes; }

}  // namespace sapwood
