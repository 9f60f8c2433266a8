// SPDX-License-Identifier: Apache-2.0
#include "base/thread_pool.h"

#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <system_error>
#include <utility>

namespace sapwood {
namespace {

constexpr int kNice = 10;

unsigned threads_for(unsigned asked) { return asked != 0 ? asked : std::max(1u, std::thread::hardware_concurrency()); }

}  // namespace

ThreadPool::ThreadPool(unsigned threads) : limit_(threads_for(threads)) {}

ThreadPool::~ThreadPool() {
    {
        std::lock_guard lock(mutex_);
        stop_ = true;
        jobs_.clear();
    }
    wake_.notify_all();
    for (std::thread& thread : threads_) thread.join();
}

bool ThreadPool::run(std::function<void()> job) {
    {
        std::lock_guard lock(mutex_);
        if (stop_) return false;
        if (idle_ <= jobs_.size() && threads_.size() < limit_) {
            try {
                threads_.emplace_back([this] { work(); });
                ++idle_;                          // until it takes its first job
            } catch (const std::system_error&) {  // no more threads to be had: those there are do the same work
                if (threads_.empty()) return false;
            }
        }
        jobs_.push_back(std::move(job));
    }
    wake_.notify_one();
    return true;
}

void ThreadPool::work() {
    [[maybe_unused]] const int now = ::nice(kNice);  // on Linux of this thread alone; if it fails, no matter
    std::unique_lock lock(mutex_);
    for (;;) {
        wake_.wait(lock, [this] { return stop_ || !jobs_.empty(); });
        if (stop_) return;
        std::function<void()> job = std::move(jobs_.front());
        jobs_.pop_front();
        --idle_;
        lock.unlock();
        job();
        job = nullptr;  // what it holds may take this lock on its way out
        lock.lock();
        ++idle_;
    }
}

void parallel_for(std::size_t count, unsigned threads, const std::function<void(std::size_t)>& body) {
    std::atomic<std::size_t> next{0};
    const auto work = [&] {
        for (std::size_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < count;) body(i);
    };
    std::vector<std::thread> helpers;
    const std::size_t wanted = std::min<std::size_t>(threads_for(threads), count);
    while (helpers.size() + 1 < wanted) {
        try {
            helpers.emplace_back(work);
        } catch (const std::system_error&) {  // fewer do the same work
            break;
        }
    }
    work();
    for (std::thread& helper : helpers) helper.join();
}

}  // namespace sapwood
