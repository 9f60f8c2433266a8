// SPDX-License-Identifier: Apache-2.0
// From a key to the unit that a compiler is given: about thirty lines, slots filled by name.
#pragma once

#include "jit/compile.h"
#include "kernel/key.h"

namespace sapwood {

/// Everything the compiler needs for this key. The same key gives the same text on every machine.
jit::CompileRequest render(const KernelKey& key);

std::uint32_t threads_of(const KernelKey& key);
std::uint32_t shared_bytes_of(const KernelKey& key);

}  // namespace sapwood
