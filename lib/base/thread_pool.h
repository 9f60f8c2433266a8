// SPDX-License-Identifier: Apache-2.0
// Threads for work that may be slow. None is started before there is work, so that a process may fork until then.
#pragma once

#include <condition_variable>
#include <cstddef>
#include <deque>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

namespace sapwood {

class ThreadPool {
public:
    /// At most `threads` at a time; 0 = one a core. They run at a lower priority than the thread that starts them: they may use
    /// what others leave idle, and must not be in anyone's way.
    explicit ThreadPool(unsigned threads = 0);
    /// Drops what has not begun and waits for what has.
    ~ThreadPool();
    ThreadPool(const ThreadPool&) = delete;
    ThreadPool& operator=(const ThreadPool&) = delete;

    /// `job` must not throw. False if it cannot be run: the pool is shutting down, or not one thread is to be had.
    [[nodiscard]] bool run(std::function<void()> job);
    unsigned limit() const noexcept { return limit_; }

private:
    void work();

    const unsigned limit_;
    std::mutex mutex_;
    std::condition_variable wake_;
    std::deque<std::function<void()>> jobs_;
    std::vector<std::thread> threads_;
    std::size_t idle_ = 0;
    bool stop_ = false;
};

/// Calls body(0) … body(count - 1), on up to `threads` threads, the calling one among them; returns when all are done. `body` must
/// not throw.
void parallel_for(std::size_t count, unsigned threads, const std::function<void(std::size_t)>& body);

}  // namespace sapwood
