// SPDX-License-Identifier: Apache-2.0
#include "host/executor.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <exception>
#include <mutex>
#include <new>
#include <optional>
#include <system_error>
#include <thread>
#include <vector>

#include "base/error.h"
#include "host/block.h"

namespace sapwood::host {
namespace {

constexpr std::uint32_t kMaxSharedBytes = 16u << 20;  // far above any SM; keeps 32-bit shared addresses from wrapping

/// Stacks and shared memory are worth keeping: a Block holds some megabytes of touched pages.
class BlockPool {
public:
    std::unique_ptr<Block> take() {
        {
            std::lock_guard lock(mutex_);
            if (!idle_.empty()) {
                std::unique_ptr<Block> block = std::move(idle_.back());
                idle_.pop_back();
                return block;
            }
        }
        return std::make_unique<Block>();
    }
    void give_back(std::unique_ptr<Block> block) {
        std::lock_guard lock(mutex_);
        if (idle_.size() < std::max(1u, std::thread::hardware_concurrency())) idle_.push_back(std::move(block));
    }

private:
    std::mutex mutex_;
    std::vector<std::unique_ptr<Block>> idle_;
};

BlockPool& pool() {
    static BlockPool instance;
    return instance;
}

/// The by-value argument, aligned as the kernel's type asks.
class Params {
public:
    Params(const void* from, std::size_t bytes, std::size_t align)
        : align_{std::max<std::size_t>(align, 16)}, copy_(::operator new(std::max<std::size_t>(bytes, 1), align_)) {
        if (bytes != 0) std::memcpy(copy_, from, bytes);
    }
    ~Params() { ::operator delete(copy_, align_); }
    Params(const Params&) = delete;
    Params& operator=(const Params&) = delete;
    const void* get() const noexcept { return copy_; }

private:
    std::align_val_t align_;
    void* copy_;
};

class Grid {
public:
    Grid(const HostEntry& entry, const jit::LaunchShape& shape, const void* params, std::uint64_t seed)
        : entry_(entry), shape_(shape), params_(params), seed_(seed) {}

    /// Before a worker is started; false takes it back.
    void expect_worker(bool really = true) noexcept { really ? ++state_.workers : --state_.workers; }

    /// Blocks start in the order of their index, so that a block may count on those before it.
    void work() noexcept {
        std::unique_ptr<Block> block;
        std::uint32_t index = shape_.grid;  // none yet
        try {
            block = pool().take();
            while (!state_.stop && (index = ticket_.fetch_add(1, std::memory_order_relaxed)) < shape_.grid) {
                std::optional<BlockFailure> failure = block->run(entry_, params_, shape_, index, seed_, state_);
                if (failure && !failure->text.empty()) note(index, std::move(*failure));
            }
            pool().give_back(std::move(block));
        } catch (...) {
            std::lock_guard lock(mutex_);
            state_.stop = true;
            if (!exception_) exception_ = std::current_exception();
        }
        expect_worker(false);
    }

    void throw_if_failed(const std::string& name) {
        if (exception_) std::rethrow_exception(exception_);
        if (failure_) raise(ErrorCode::kInternal, "host kernel " + name + ": " + failure_->text, failure_->detail);
    }

private:
    void note(std::uint32_t index, BlockFailure failure) {
        std::lock_guard lock(mutex_);
        state_.stop = true;
        if (failure_ && failed_block_ < index) return;  // the first block's error is the one told, whoever was quicker
        failure_ = std::move(failure);
        failed_block_ = index;
    }

    const HostEntry& entry_;
    const jit::LaunchShape& shape_;
    const void* params_;
    const std::uint64_t seed_;
    std::atomic<std::uint32_t> ticket_{0};
    GridState state_;
    std::mutex mutex_;
    std::optional<BlockFailure> failure_;
    std::uint32_t failed_block_ = 0;
    std::exception_ptr exception_;
};

void check(const HostEntry& entry, const std::string& name, const jit::LaunchShape& shape, std::size_t params_bytes) {
    const auto refuse = [&](const std::string& why) { raise(ErrorCode::kInvalidArgument, "host kernel " + name + ": " + why); };
    if (shape.block == 0 || shape.block % 32 != 0 || shape.block > entry.threads || shape.block > kHostMaxThreads) {
        refuse("a block of " + std::to_string(shape.block) + " threads; it takes whole warps, at most " +
               std::to_string(entry.threads));
    }
    if (shape.grid == 0 || shape.grid > 0x7fffffff) refuse("a grid of " + std::to_string(shape.grid) + " blocks");
    if (shape.shared_bytes > kMaxSharedBytes) refuse(std::to_string(shape.shared_bytes) + " bytes of shared memory a block");
    if (params_bytes != entry.params_bytes) {
        refuse("parameters of " + std::to_string(params_bytes) + " bytes; it was compiled for " +
               std::to_string(entry.params_bytes));
    }
}

}  // namespace

void execute(const HostEntry& entry, const std::string& name, const ExecutorOptions& options, const jit::LaunchShape& shape,
             const void* params, std::size_t params_bytes) {
    check(entry, name, shape, params_bytes);
    const Params copy(params, params_bytes, entry.params_align);
    Grid grid(entry, shape, copy.get(), options.schedule_seed);

    const unsigned wanted = options.os_threads != 0 ? options.os_threads : std::max(1u, std::thread::hardware_concurrency());
    const std::uint32_t workers = std::min<std::uint32_t>(wanted, shape.grid);
    {
        std::vector<std::jthread> helpers;
        helpers.reserve(workers - 1);
        grid.expect_worker();
        while (helpers.size() + 1 < workers) {
            grid.expect_worker();
            try {
                helpers.emplace_back([&grid] { grid.work(); });
            } catch (const std::system_error&) {  // no more OS threads to be had: fewer do the same work
                grid.expect_worker(false);
                break;
            }
        }
        grid.work();
    }
    grid.throw_if_failed(name);
}

}  // namespace sapwood::host
