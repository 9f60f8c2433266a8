// SPDX-License-Identifier: Apache-2.0
// The `host` target: the same templates, built by the system C++ compiler, run on the CPU with one fiber a CUDA thread.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "jit/artifact.h"
#include "jit/compile.h"
#include "jit/loaded_kernel.h"

namespace sapwood::host {

/// The system C++ compiler ($CXX, c++, g++, clang++) as a subprocess with an argument vector (no shell), a deadline and its own
/// temporary directory.
class Compiler final : public jit::Compiler {
public:
    Compiler();
    ~Compiler() override;
    std::string identity() override;  // path-free: version line, target triple, CPU feature level
    std::string family() override;    // processor and flags, sanitizers among them
    jit::Artifact compile(const jit::CompileRequest& request) override;
    std::string path();  // empty if none

private:
    struct Impl;
    std::unique_ptr<Impl> impl_;
};

struct ExecutorOptions {
    std::uint64_t schedule_seed = 0;  // 0: fibers in order; else a seeded shuffle at every scheduling decision
    unsigned os_threads = 0;          // blocks run in parallel; 0 = hardware concurrency
};

/// Loads a host object through an anonymous in-memory file. launch() runs the grid to completion: one OS thread a block at a time,
/// one fiber a CUDA thread. A deadlock or a barrier that some thread never reaches is an Error{kInternal} naming threads and
/// places.
std::unique_ptr<jit::LoadedKernel> load(const jit::Artifact& artifact, const ExecutorOptions& options);

}  // namespace sapwood::host
