// SPDX-License-Identifier: Apache-2.0
// Private to jit: the bundles that a cache looks into, in the order they were added. Look-ups take no lock, so that a forked child
// whose parent was adding one still works.
#pragma once

#include <atomic>
#include <memory>
#include <utility>
#include <vector>

#include "base/log.h"
#include "jit/bundle.h"

namespace sapwood::jit {

class BundleList {
public:
    using Bundles = std::vector<std::shared_ptr<const Bundle>>;

    BundleList() = default;
    ~BundleList() {
        for (const Node* node = head_.load(); node != nullptr;) delete std::exchange(node, node->previous);
    }
    BundleList(const BundleList&) = delete;
    BundleList& operator=(const BundleList&) = delete;

    /// Earlier lists are kept, since another thread may be reading one; there are few.
    void add(std::shared_ptr<const Bundle> bundle) {
        auto node = std::make_unique<Node>();
        node->previous = head_.load(std::memory_order_acquire);
        do {
            node->bundles = node->previous != nullptr ? node->previous->bundles : Bundles();
            node->bundles.push_back(bundle);
        } while (!head_.compare_exchange_weak(node->previous, node.get(), std::memory_order_acq_rel));
        node.release();
    }

    Bundles all() const {
        const Node* node = head_.load(std::memory_order_acquire);
        return node != nullptr ? node->bundles : Bundles();
    }

    /// The first sound kernel under this digest; null if there is none. A damaged one costs a warning for its bundle.
    std::shared_ptr<const Artifact> read(const Digest& source, std::atomic<std::uint64_t>& damaged) const {
        const Node* node = head_.load(std::memory_order_acquire);
        if (node == nullptr) return nullptr;
        for (const auto& bundle : node->bundles) {
            const BundleEntry* entry = bundle->find(source);
            if (entry == nullptr) continue;
            std::string fault;
            if (auto artifact = bundle->read(*entry, &fault)) return artifact;
            damaged.fetch_add(1, std::memory_order_relaxed);
            log::warning_once("bundle-damaged:" + bundle->path().string(),
                              "bundle " + bundle->path().string() + ": kernel " + to_hex(source) + ": " + fault +
                                  "; it is looked for elsewhere. `sapwood cache verify --bundle` lists what is damaged");
        }
        return nullptr;
    }

private:
    struct Node {
        Bundles bundles;
        const Node* previous = nullptr;
    };
    std::atomic<const Node*> head_{nullptr};
};

}  // namespace sapwood::jit
