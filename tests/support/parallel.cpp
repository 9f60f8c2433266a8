// SPDX-License-Identifier: Apache-2.0
#include "support/parallel.h"

#include <algorithm>
#include <atomic>
#include <exception>
#include <mutex>
#include <thread>
#include <vector>

namespace sapwood::support {

void parallel_for(std::int64_t n, std::int64_t grain, const std::function<void(std::int64_t, std::int64_t)>& body,
                  unsigned threads) {
    if (n <= 0) return;
    grain = std::max<std::int64_t>(grain, 1);
    const std::int64_t pieces = (n + grain - 1) / grain;
    if (threads == 0) threads = std::max(1u, std::thread::hardware_concurrency());
    threads = static_cast<unsigned>(std::min<std::int64_t>(threads, pieces));
    if (threads <= 1) {
        body(0, n);
        return;
    }
    std::atomic<std::int64_t> next{0};
    std::exception_ptr failure;
    std::mutex failure_lock;
    const auto work = [&] {
        try {
            for (std::int64_t piece; (piece = next.fetch_add(1)) < pieces;) body(piece * grain, std::min(n, (piece + 1) * grain));
        } catch (...) {
            std::lock_guard lock(failure_lock);
            if (!failure) failure = std::current_exception();
            next = pieces;  // the others stop at their next piece
        }
    };
    std::vector<std::thread> team;
    for (unsigned i = 1; i < threads; ++i) team.emplace_back(work);
    work();
    for (std::thread& thread : team) thread.join();
    if (failure) std::rethrow_exception(failure);
}

}  // namespace sapwood::support
