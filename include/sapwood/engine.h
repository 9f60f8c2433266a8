// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "sapwood/decode.h"
#include "sapwood/merge.h"
#include "sapwood/packed.h"
#include "sapwood/static_tree.h"

namespace sapwood {

/// What the first call of a kernel that is not ready does.
enum class CompilePolicy {
    blocking,  ///< waits until it is compiled
    /// is served by the nearest ready kernel (same problem, other tile sizes) while a thread compiles; waits where there is none
    background,
    background_or_error,  ///< the same, and Error{kNotPrepared} in place of waiting
};

/// What a kernel that was not prepared means after Engine::seal.
enum class SealPolicy {
    error,    ///< Error{kNotPrepared}
    warn,     ///< one warning a kernel; then as without seal, and counted
    nearest,  ///< the nearest ready kernel serves, nothing is compiled; Error{kNotPrepared} where there is none
};

struct EngineOptions {
    /// "auto" (a GPU if there is one, else host), "cuda", "cuda:1", "host", or an SM such as "sm_90a": then kernels can be prepared
    /// (compiled, cached, inspected) for that SM without a GPU, and not launched.
    std::string target = "auto";
    /// Empty = SAPWOOD_CACHE_DIR, else $XDG_CACHE_HOME/sapwood, else $HOME/.cache/sapwood.
    std::filesystem::path cache_dir;
    bool disk_cache = true;
    /// GPU, SM 9.0 and later: a launch may start, up to the look-up of its work list, while the kernel before it on the stream
    /// still runs (programmatic dependent launch); it waits before it touches tensors or page table. False: it starts after that
    /// kernel.
    bool overlap_launches = true;
    /// host target: seed of the order in which a block's threads run; 0 = in order. Results do not depend on it.
    std::uint64_t host_schedule_seed = 0;
    /// host target: blocks that run at the same time; 0 = one a core.
    unsigned host_threads = 0;
    /// Bundles of kernels (`sapwood pack`), looked into before the disk, ahead of those that SAPWOOD_BUNDLE_PATH lists. One that
    /// cannot be used costs a warning.
    std::vector<std::filesystem::path> bundles;
    CompilePolicy compile = CompilePolicy::blocking;
    unsigned compile_threads = 0;  ///< of prepare(…) and background compiles; 0 = one a core; started when there is work
    /// File that the distinct problems of this engine are recorded in (no tensor data); empty = SAPWOOD_TRACE, else none. "%p" is
    /// the process id.
    std::filesystem::path trace;
    /// Leaves a GPU alone even if `target` is here: for build machines and tools that prepare kernels for others.
    bool compile_only = false;
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
    std::string origin;     ///< "memory", "bundle", "disk" or "compiled"
    double prepare_ms = 0;  ///< wall time of this prepare
    double compile_ms = 0;  ///< of the compiler, when it was made
    int registers = 0, spill_bytes = 0, shared_bytes = 0, threads = 0, blocks_per_sm = 0;
    std::string log;
    std::string error;  ///< of a prepare of many: why this kernel is not ready; empty if it is
    /// The key that a call would rather have, where the nearest ready kernel stands in for it; else empty.
    std::string stands_in_for;
};

/// What one ready kernel has done so far.
struct KernelUse {
    std::string key, origin;
    std::uint64_t calls = 0;           ///< launches that it served
    std::uint64_t stand_in_calls = 0;  ///< those of them that another kernel was meant for
    double compile_ms = 0;             ///< when it was made
};

struct EngineStats {
    std::uint64_t launches = 0, compiles = 0, disk_hits = 0, memory_hits = 0, misses_after_seal = 0;
    double compile_ms = 0;
    std::uint64_t bundle_hits = 0;
    std::uint64_t compiles_after_seal = 0;  ///< the figure a server watches: 0
    std::uint64_t stand_in_launches = 0;    ///< served by the nearest ready kernel
    std::uint64_t background_compiles = 0, background_failures = 0;
    std::uint64_t switches = 0;  ///< plans that went over from a stand-in to their own kernel
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

    /// A plan for static trees (FST): each sequence's nodes are queries that see their ancestors, themselves and a prefix. `limits`
    /// of growth do not apply: such a plan is not updated. Throws kInvalidArgument, kInvalidProblem, kUnsupportedDevice.
    DecodePlan plan_static_tree(const DecodeProblem& problem, std::span<const StaticTree> trees,
                                std::span<const StaticTreeSequence> sequences, const DecodeConfig& config = {});

    /// Compiles or fetches the plan's kernel, loads it and allocates the plan's device buffers: all that may be slow.
    KernelReport prepare(DecodePlan& plan);
    /// The same for many at once, the kernels compiled in parallel on compile_threads. Does not throw for a kernel that fails: its
    /// report says why, the others are ready.
    std::vector<KernelReport> prepare(std::span<DecodePlan> plans);
    /// The same for kernels given by their canonical texts (DecodePlan::kernel_key, `sapwood warm --list`).
    std::vector<KernelReport> prepare_keys(std::span<const std::string> keys);
    /// Copies a new or updated work list to the device, ordered on `stream`. launch() does it by itself except under graph capture.
    void upload(DecodePlan& plan, void* stream = nullptr);
    /// Checks the arguments and enqueues one kernel on `stream` (a CUstream or cudaStream_t). Safe under graph capture once the
    /// plan is prepared and uploaded. On the host target it runs to completion.
    void launch(DecodePlan& plan, const DecodeTensors& tensors, void* stream = nullptr);

    /// Compiles or fetches the kernel that merges such parts, and loads it. Throws kInvalidProblem and what compilers throw.
    KernelReport prepare_merge(const MergeProblem& problem);
    /// Merges the parts of `rows` rows (0: nothing to do) by one kernel on `stream`; MergeProblem says what comes out. A kernel
    /// that is not prepared is waited for, whatever EngineOptions::compile says (no other one could stand in); after seal() that is
    /// Error{kNotPrepared}, or a warning with SealPolicy::warn. Once it is prepared the call neither allocates nor locks, and is
    /// safe under graph capture. Throws kInvalidProblem; kInvalidArgument for a null or misaligned tensor, a stride that breaks
    /// the 16-byte alignment or makes results overlap, an output that overwrites parts; kNotPrepared.
    void merge_states(const MergeProblem& problem, const MergeTensors& tensors, std::int64_t rows, void* stream = nullptr);
    /// The same for attention over a pack, forward. Tile lists are the plan's own: a plan may be in flight on one stream at a time.
    /// Kernels are compiled or fetched under the same policies, but no other kernel stands in for one that is not ready.
    PackedPlan plan_packed(const PackedProblem& problem, const Pack& pack, const PackedConfig& config = {});
    KernelReport prepare(PackedPlan& plan);
    void upload(PackedPlan& plan, void* stream = nullptr);
    void launch(PackedPlan& plan, const PackedTensors& tensors, void* stream = nullptr);

    /// Gradients of attention over a pack: three kernels on one stream, two more before them where the pack has arrays. Sums in
    /// fp32 are added up in no fixed order, unless the options ask for one.
    PackedBackwardPlan plan_packed_backward(const PackedProblem& problem, const Pack& pack,
                                            const PackedBackwardOptions& options = {});
    std::vector<KernelReport> prepare(PackedBackwardPlan& plan);
    void upload(PackedBackwardPlan& plan, void* stream = nullptr);
    void launch(PackedBackwardPlan& plan, const PackedGradients& tensors, void* stream = nullptr);

    /// From now on a kernel that is not prepared is what the policy says instead of a compile.
    void seal(SealPolicy policy = SealPolicy::error);
    /// Waits until every background compile that has begun is done.
    void finish_compiles();

    /// Looks into this bundle from now on, after those added before. With `expected_digest` (64 hex digits, `sapwood inspect
    /// f.swb`) the whole file is checked against it. False, with one warning saying why, if it is not used.
    bool add_bundle(const std::filesystem::path& path, const std::string& expected_digest = {});
    /// Writes the trace so far; the destructor does it as well. Throws kIo.
    void flush_trace();

    const std::string& target() const noexcept;  ///< "sm_90a" or "host"
    bool has_device() const noexcept;            ///< launches possible
    std::string device_name() const;
    std::string describe_cache() const;  ///< root and health
    EngineStats stats() const;
    std::vector<KernelUse> kernels() const;  ///< every ready kernel, by key
    /// All counters in Prometheus' text format.
    std::string metrics_text() const;
    std::string describe_tuning() const;  ///< records and digest; equal digests on all ranks choose alike

    /// The rendered source of the plan's kernel.
    std::string source(const DecodePlan& plan) const;
    /// The compiled bytes (cubin or shared object) of the plan's kernel; prepares it.
    std::vector<std::byte> binary(DecodePlan& plan);
    std::string source(const PackedPlan& plan) const;
    std::vector<std::byte> binary(PackedPlan& plan);

    struct Impl;
    Impl& impl() noexcept { return *impl_; }

private:
    std::unique_ptr<Impl> impl_;
};

/// The counters of every live engine of this process in Prometheus' text format: for a metrics endpoint to hand on.
std::string metrics();

}  // namespace sapwood
