// SPDX-License-Identifier: Apache-2.0
#include "base/thread_pool.h"

#include <doctest/doctest.h>

#include <atomic>
#include <latch>

#include "base/process.h"
#include "support/cache_fixture.h"

using namespace sapwood;

TEST_CASE("thread pool: jobs run side by side up to the limit, what has begun is finished, the rest is dropped") {
    std::atomic<int> done{0}, begun{0};
    {
        ThreadPool pool(2);
        std::latch both(2);
        for (int i = 0; i < 2; ++i) {
            const bool taken = pool.run([&] {
                both.arrive_and_wait();  // hangs unless two run at once
                ++done;
            });
            CHECK(taken);
        }
        both.wait();
        std::latch held(1);
        for (int i = 0; i < 2; ++i)
            CHECK(pool.run([&] {
                ++begun;
                held.wait();
                ++done;
            }));
        while (begun < 2) std::this_thread::yield();
        for (int i = 0; i < 5; ++i) CHECK(pool.run([&] { done += 100; }));
        held.count_down();
    }
    CHECK(done % 100 == 4);
    std::vector<std::atomic<int>> visits(100);
    parallel_for(visits.size(), 3, [&](std::size_t i) { ++visits[i]; });
    for (const auto& count : visits) CHECK(count == 1);
    parallel_for(0, 3, [](std::size_t) { FAIL("called"); });
}

TEST_CASE("process: a forked child has its own of what holds locks and threads") {
    const std::uint64_t generation = process_generation();
    PerProcess<int> own([] { return std::make_unique<int>(0); });
    own.get() = 7;
    CHECK(test::in_child([&]() -> std::string {
              SAPWOOD_NEED(process_generation() != generation);
              SAPWOOD_NEED(own.get() == 0);
              return {};
          }) == "");
    CHECK(process_generation() == generation);
    CHECK(own.get() == 7);
}
