// SPDX-License-Identifier: Apache-2.0
// One creation a key among threads: the first caller creates, the others wait for it; a failure is told to every waiter and then
// forgotten, so that the next call tries again.
#pragma once

#include <future>
#include <map>
#include <memory>
#include <mutex>

namespace sapwood {

template <class Key, class Value>
class OnceCache {
public:
    template <class Create>
    std::shared_ptr<Value> get_or_create(const Key& key, Create&& create) {
        std::promise<std::shared_ptr<Value>> promise;
        {
            std::unique_lock lock(mutex_);
            if (auto it = entries_.find(key); it != entries_.end()) {
                auto future = it->second;
                lock.unlock();
                return future.get();
            }
            entries_.emplace(key, promise.get_future().share());
        }
        try {
            std::shared_ptr<Value> value = create();
            promise.set_value(value);
            return value;
        } catch (...) {
            {
                std::lock_guard lock(mutex_);
                entries_.erase(key);
            }
            promise.set_exception(std::current_exception());
            throw;
        }
    }

private:
    std::mutex mutex_;
    std::map<Key, std::shared_future<std::shared_ptr<Value>>> entries_;
};

}  // namespace sapwood
