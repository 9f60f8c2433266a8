// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <atomic>
#include <mutex>
#include <optional>
#include <set>
#include <thread>
#include <vector>

#include "cuda/nvrtc.h"
#include "jit/disk_cache.h"
#include "kernel/render.h"
#include "plan/tiles.h"
#include "tune.h"
#include "tune/config_fields.h"
#include "tune/packed_candidates.h"
#include "tune_case.h"

namespace sapwood::tool {

/// Compiles what the jobs ahead will ask for, on the cores that measuring leaves idle. Errors come up again where they matter.
class CompileAhead {
public:
    CompileAhead(const TuneArgs& args, const tune::DeviceFacts& device, const std::vector<TuneJob>& jobs, unsigned threads)
        : args_(args), device_(device), jobs_(jobs), cache_(std::filesystem::path(args.cache)) {
        if (cache_.root().empty()) return;  // no disk, nothing to hand over
        for (unsigned i = 0; i < threads; ++i) threads_.emplace_back([this] { run(); });
    }
    ~CompileAhead() {
        stop_ = true;
        for (std::thread& thread : threads_) thread.join();
    }

private:
    void run() {
        for (;;) {
            std::optional<KernelKey> key;
            {
                const std::lock_guard lock(mutex_);
                while (!stop_ && queue_.empty() && next_job_ < jobs_.size()) fill(jobs_[next_job_++]);
                if (stop_ || queue_.empty()) return;
                key = queue_.front();
                queue_.erase(queue_.begin());
            }
            try {
                (void)cache_.get_or_compile(render(*key), compiler_);
            } catch (const Error&) {}
        }
    }
    void fill(const TuneJob& job) {
        // By problem, not by forest or pack: the kernels of the list are the same for all of these shapes.
        const DecodeConfig fixed = tune_options(args_).fix;
        const auto add = [&](const DecodeConfig& config) {
            const KernelKey key = key_of(job, config, device_.limits.target);
            if (tune::agrees(config, fixed) && known_.insert(key).second) queue_.push_back(key);
        };
        if (job.packed) {
            const tune::PackedPass pass(job.packed->pass, job.packed->problem());
            for (const DecodeConfig& config : tune::configs_of(*tune::packed_list(job.packed->pass).list))
                if (pass.why_illegal(config, device_.limits).empty()) add(config);
            return;
        }
        for (const DecodeConfig& config : tune::configs_of(*tune::list_for(device_.limits.sm).list)) {
            try {
                add(choose_config(job.problem, config, device_.limits));
            } catch (const Error&) {}  // nothing fits
        }
    }

    const TuneArgs& args_;
    const tune::DeviceFacts& device_;
    const std::vector<TuneJob>& jobs_;
    jit::DiskCache cache_;
    cuda::Nvrtc compiler_;
    std::mutex mutex_;
    std::vector<KernelKey> queue_;
    std::set<KernelKey> known_;
    std::size_t next_job_ = 0;
    std::atomic<bool> stop_{false};
    std::vector<std::thread> threads_;
};

}  // namespace sapwood::tool
