// SPDX-License-Identifier: Apache-2.0
// Small random forests for property tests: ids in any order, several roots, empty nodes, chains and stars, requests anywhere.
#pragma once

#include <algorithm>
#include <random>
#include <vector>

#include "sapwood/forest.h"

namespace sapwood::support {

/// The same numbers on every machine: only the engine of <random> is portable, its distributions are not.
class Dice {
public:
    explicit Dice(std::uint64_t seed) : engine_(seed) {}
    /// 0 … count - 1.
    std::int32_t below(std::int64_t count) { return static_cast<std::int32_t>(engine_() % static_cast<std::uint64_t>(count)); }
    std::int32_t between(std::int64_t low, std::int64_t high) { return static_cast<std::int32_t>(low + below(high - low + 1)); }
    template <class T>
    T one_of(std::initializer_list<T> values) {
        return values.begin()[below(static_cast<std::int64_t>(values.size()))];
    }

private:
    std::mt19937_64 engine_;
};

struct ForestShape {
    std::int32_t nodes = 1, requests = 1;
    std::int64_t longest = 64;  // most tokens a node
};

inline std::int64_t random_tokens(Dice& dice, std::int64_t longest) {
    switch (dice.below(5)) {
        case 0:
            return 0;
        case 1:
            return std::min<std::int64_t>(longest, dice.one_of({1, 15, 16, 17, 31, 32, 33, 64}));
        default:
            return dice.between(1, longest);
    }
}

/// KV positions of nodes never meet; `gap` positions behind each are free, so that tests can append tokens.
inline Forest random_forest(Dice& dice, const ForestShape& shape, std::int64_t gap = 0) {
    std::vector<std::int32_t> id(static_cast<std::size_t>(shape.nodes));
    for (std::int32_t i = 0; i < shape.nodes; ++i) {
        id[i] = i;
        std::swap(id[i], id[dice.below(i + 1)]);
    }
    const std::int32_t habit = dice.below(4);  // chains, stars, or anything
    std::vector<Node> nodes(id.size());
    std::int64_t position = dice.below(100);
    for (std::int32_t i = 0; i < shape.nodes; ++i) {
        std::int32_t parent = i == 0 || dice.below(8) == 0 ? -1 : habit == 0 ? i - 1 : habit == 1 ? 0 : dice.below(i);
        if (parent >= 0) parent = id[parent];
        nodes[id[i]] = {.parent = parent, .tokens = random_tokens(dice, shape.longest), .kv_begin = position};
        position += nodes[id[i]].tokens + gap + dice.below(3);
    }
    std::vector<std::int32_t> requests(static_cast<std::size_t>(shape.requests));
    for (std::int32_t& node : requests) node = dice.below(shape.nodes + 1) - 1;  // one of them may be kNoNode
    return Forest::from_nodes(nodes, requests);
}

}  // namespace sapwood::support
