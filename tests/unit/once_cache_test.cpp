// SPDX-License-Identifier: Apache-2.0
#include "base/once_cache.h"

#include <doctest/doctest.h>

#include <atomic>
#include <chrono>
#include <stdexcept>
#include <thread>

namespace sapwood {
namespace {

using namespace std::chrono_literals;

TEST_CASE("once cache: two threads, one creation, one value") {
    OnceCache<int, int> cache;
    std::atomic<int> created{0};
    const auto create = [&] {
        ++created;
        std::this_thread::sleep_for(50ms);  // long enough for the other thread to arrive
        return std::make_shared<int>(7);
    };
    std::shared_ptr<int> first, second;
    std::thread other([&] { first = cache.get_or_create(1, create); });
    second = cache.get_or_create(1, create);
    other.join();
    CHECK(created == 1);
    CHECK(first == second);
    CHECK(cache.get_or_create(2, create) != first);
}

TEST_CASE("once cache: a failure is told to every waiter and not kept") {
    OnceCache<int, int> cache;
    std::atomic<int> tries{0}, told{0};
    std::atomic<bool> inside{false};
    const auto ask = [&] {
        try {
            cache.get_or_create(1, [&]() -> std::shared_ptr<int> {
                ++tries;
                inside = true;
                std::this_thread::sleep_for(50ms);
                throw std::runtime_error("refused");
            });
        } catch (const std::runtime_error&) {
            ++told;
        }
    };
    std::thread first(ask);
    while (!inside) std::this_thread::yield();
    std::thread second(ask);
    first.join();
    second.join();
    CHECK(tries == 1);
    CHECK(told == 2);
    CHECK(*cache.get_or_create(1, [] { return std::make_shared<int>(3); }) == 3);
}

}  // namespace
}  // namespace sapwood
