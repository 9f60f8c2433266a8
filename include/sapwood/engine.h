// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "sapwood/decode.h"

namespace sapwood {

struct EngineOptions {
    /// "auto" (a GPU if there is one, else host), "cuda", "cuda:1", "host", or an SM such as "sm_90a": then kernels can be prepared
    /// (compiled, cached, inspected) for that SM without a GPU, and not launched.
    std::string target = "auto";
    /// Empty = SAPWOOD_CACHE_DIR, else $XDG_CACHE_HOME/sapwood, else $HOME/.cache/sapwood.
    std::filesystem::path cache_dir;
    bool disk_cache = true;
    /// GPU, SM 9.0 and later: a launch may start, up to the look-up of its work list, while the kernel before it on the stream still
    /// runs (programmatic dependent launch); it waits before it touches tensors or page table. False: it starts after that kernel.
    bool overlap_launches = true;
    /// host target: seed of the order in which a block's threads run; 0 = in order. Results do not depend on it.
    std::uint64_t host_schedule_seed = 0;
    /// host target: blocks that run at the same time; 0 = one a core.
    unsigned host_threads = 0;
    /// "read": configurations that a caller leaves open come from the tuning database; "off": from the planner. Empty =
    /// SAPWOOD_TUNE, else "read".
    std::string tune;
    /// Tuning database. Empty = SAPWOOD_TUNE_DIR, else v1/tune in the cache directory. Records that are embedded come after it.
    std::filesystem::path tune_dir;
};

/// What is known of the kernel of a plan once it is prepared.
struct KernelReport {
    std::string key;  ///< canonical text
    std::string target, compiler;
    std::string origin;     ///< "memory", "disk" or "compiled"
    double prepare_ms = 0;  ///< wall time of this prepare
    double compile_ms = 0;  ///< of the compiler, when it was made
    int registers = 0, spill_bytes = 0, shared_bytes = 0, threads = 0, blocks_per_sm = 0;
    std::string log;
};

struct EngineStats {
    std::uint64_t launches = 0, compiles = 0, disk_hits = 0, memory_hits = 0, misses_after_seal = 0;
    double compile_ms = 0;
    /// Plans by where their configuration came from (DecodePlanInfo::tuned), and records that could not run here.
    std::uint64_t tune_exact = 0, tune_near = 0, tune_other_gpu = 0, tune_default = 0, tune_rejected = 0;
};

/// Plans, compiles, caches and launches. Thread-safe; one engine a device is the normal use.
class Engine {
public:
    explicit Engine(EngineOptions options = {});
    ~Engine();
    Engine(const Engine&) = delete;
    Engine& operator=(const Engine&) = delete;

    /// Pure host work, microseconds; owns no device memory. Throws kInvalidProblem, kInvalidForest, kUnsupportedDevice.
    DecodePlan plan_decode(const DecodeProblem& problem, const Forest& forest, const DecodeConfig& config = {},
                           const DecodeLimits& limits = {});

    /// Compiles or fetches the plan's kernel, loads it and allocates the plan's device buffers: all that may be slow.
    KernelReport prepare(DecodePlan& plan);
    /// Copies a new or updated work list to the device, ordered on `stream`. launch() does it by itself except under graph capture.
    void upload(DecodePlan& plan, void* stream = nullptr);
    /// Checks the arguments and enqueues one kernel on `stream` (a CUstream or cudaStream_t). Safe under graph capture once the
    /// plan is prepared and uploaded. On the host target it runs to completion.
    void launch(DecodePlan& plan, const DecodeTensors& tensors, void* stream = nullptr);

    /// From now on a kernel that is not prepared is an Error{kNotPrepared} instead of a compile.
    void seal();

    const std::string& target() const noexcept;  ///< "sm_90a" or "host"
    bool has_device() const noexcept;            ///< launches possible
    std::string device_name() const;
    std::string describe_cache() const;  ///< root and health
    EngineStats stats() const;
    std::string describe_tuning() const;  ///< records and digest; equal digests on all ranks choose alike

    /// The rendered source of the plan's kernel.
    std::string source(const DecodePlan& plan) const;
    /// The compiled bytes (cubin or shared object) of the plan's kernel; prepares it.
    std::vector<std::byte> binary(DecodePlan& plan);

    struct Impl;
    Impl& impl() noexcept { return *impl_; }

private:
    std::unique_ptr<Impl> impl_;
};

}  // namespace sapwood
