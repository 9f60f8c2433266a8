// SPDX-License-Identifier: Apache-2.0
#include "sapwood/static_tree.h"

#include <algorithm>
#include <string>

#include "base/error.h"

namespace sapwood {
namespace {

[[noreturn]] void refuse(const std::string& why) { raise(ErrorCode::kInvalidArgument, why); }

}  // namespace

StaticTree StaticTree::from_parents(std::span<const std::int32_t> parents) {
    const auto count = static_cast<std::int32_t>(parents.size());
    for (std::int32_t i = 0; i < count; ++i) {
        if (parents[i] < -1 || parents[i] >= count) {
            refuse("tree node " + std::to_string(i) + " names parent " + std::to_string(parents[i]) + "; there are " +
                   std::to_string(count) + " nodes, and -1 marks a root");
        }
    }
    StaticTree tree;
    tree.rows_ = count;
    tree.parents_.assign(parents.begin(), parents.end());
    tree.depth_.assign(parents.size(), -1);
    std::vector<std::int32_t> path;
    for (std::int32_t start = 0; start < count; ++start) {
        path.clear();
        std::int32_t i = start;
        for (; i >= 0 && tree.depth_[i] < 0; i = parents[i]) {
            if (static_cast<std::int32_t>(path.size()) == count)
                refuse("tree node " + std::to_string(start) + " is its own ancestor");
            path.push_back(i);
        }
        for (std::int32_t depth = i < 0 ? 0 : tree.depth_[i] + 1; !path.empty(); path.pop_back())
            tree.depth_[path.back()] = depth++;
    }
    return tree;
}

StaticTree StaticTree::from_fst(std::span<const std::int64_t> ancestor_idx, std::span<const std::uint8_t> ancestor_mask,
                                std::span<const std::int64_t> leaf_idx, std::int32_t rows, std::int32_t block_m,
                                std::int32_t max_ancestors) {
    if (rows < 0 || block_m <= 0 || max_ancestors < 0) {
        refuse(std::to_string(rows) + " rows in blocks of " + std::to_string(block_m) + " with " + std::to_string(max_ancestors) +
               " ancestors");
    }
    const auto blocks = static_cast<std::size_t>((std::int64_t{rows} + block_m - 1) / block_m);
    const auto m = static_cast<std::size_t>(block_m), a = static_cast<std::size_t>(max_ancestors);
    const auto check_size = [&](const char* what, std::size_t found, std::size_t needed) {
        if (found < needed) {
            refuse(std::string(what) + " has " + std::to_string(found) + " elements; " + std::to_string(blocks) + " blocks of " +
                   std::to_string(block_m) + " rows need " + std::to_string(needed));
        }
    };
    check_size("ancestor_idx", ancestor_idx.size(), blocks * a);
    check_size("ancestor_mask", ancestor_mask.size(), blocks * m * a);
    check_size("leaf_idx", leaf_idx.size(), blocks * m);
    StaticTree tree;
    tree.rows_ = rows;
    tree.sees_itself_.assign(static_cast<std::size_t>(rows), 0);
    tree.list_begin_.push_back(0);
    std::vector<std::int32_t> row;
    for (std::size_t r = 0; r < static_cast<std::size_t>(rows); ++r) {
        row.clear();
        const auto see = [&](const char* what, std::int64_t node) {
            if (node == -1) return;
            if (node < 0 || node >= rows) {
                refuse(std::string(what) + " of row " + std::to_string(r) + " names node " + std::to_string(node) + "; there are " +
                       std::to_string(rows) + " (indices come without the prefix length added)");
            }
            if (node == static_cast<std::int64_t>(r)) {
                tree.sees_itself_[r] = 1;
            } else {
                row.push_back(static_cast<std::int32_t>(node));
            }
        };
        for (std::size_t j = 0; j < a; ++j) {
            if (ancestor_mask[r * a + j] != 0) see("ancestor_idx", ancestor_idx[r / m * a + j]);
        }
        see("leaf_idx", leaf_idx[r]);
        std::sort(row.begin(), row.end());
        tree.lists_.insert(tree.lists_.end(), row.begin(), std::unique(row.begin(), row.end()));
        tree.list_begin_.push_back(static_cast<std::int64_t>(tree.lists_.size()));
    }
    return tree;
}

std::vector<std::int32_t> StaticTree::seen(std::int32_t row) const {
    std::vector<std::int32_t> nodes;
    if (list_begin_.empty()) {
        for (std::int32_t i = row; i >= 0; i = parents_[i]) nodes.push_back(i);
    } else {
        nodes.assign(lists_.begin() + list_begin_[row], lists_.begin() + list_begin_[row + 1]);
        if (sees_itself_[row]) nodes.push_back(row);
    }
    std::sort(nodes.begin(), nodes.end());
    return nodes;
}

void StaticTree::block(std::int32_t begin, std::int32_t end, Block& into) const {
    into.all.clear(), into.some.clear();
    if (list_begin_.empty()) {
        into.self.assign(static_cast<std::size_t>(end - begin), 1);
        find_by_parents(begin, end, into);
    } else {
        into.self.assign(sees_itself_.begin() + begin, sees_itself_.begin() + end);
        find_by_lists(begin, end, into);
    }
}

/// The lowest node that is an ancestor of every row, or one of the rows and an ancestor of all others; -1 = none.
std::int32_t StaticTree::common_ancestor(std::int32_t begin, std::int32_t end) const {
    std::int32_t common = begin;
    for (std::int32_t row = begin + 1; row < end && common >= 0; ++row) {
        std::int32_t other = row;
        while (common != other) {
            std::int32_t& deeper = common >= 0 && (other < 0 || depth_[common] >= depth_[other]) ? common : other;
            deeper = parents_[deeper];
        }
    }
    return common;
}

void StaticTree::find_by_parents(std::int32_t begin, std::int32_t end, Block& into) const {
    std::int32_t top = common_ancestor(begin, end);
    if (top >= begin && top < end) top = parents_[top];  // a row does not list itself
    for (std::int32_t i = top; i >= 0; i = parents_[i]) into.all.push_back(i);
    std::reverse(into.all.begin(), into.all.end());
    if (!std::is_sorted(into.all.begin(), into.all.end())) std::sort(into.all.begin(), into.all.end());
    // What lies between the rows and the top.
    for (std::int32_t row = begin; row < end; ++row) {
        for (std::int32_t i = parents_[row]; i != top && i >= 0; i = parents_[i]) into.some.push_back(i);
    }
    std::sort(into.some.begin(), into.some.end());
    into.some.erase(std::unique(into.some.begin(), into.some.end()), into.some.end());
    into.words = static_cast<std::int32_t>((into.some.size() + 31) / 32);
    into.bits.assign(static_cast<std::size_t>(end - begin) * static_cast<std::size_t>(into.words), 0);
    for (std::int32_t row = begin; row < end; ++row) {
        for (std::int32_t i = parents_[row]; i != top && i >= 0; i = parents_[i]) {
            const auto at = std::lower_bound(into.some.begin(), into.some.end(), i) - into.some.begin();
            into.bits[static_cast<std::size_t>((row - begin) * into.words + at / 32)] |= 1u << (at % 32);
        }
    }
}

void StaticTree::find_by_lists(std::int32_t begin, std::int32_t end, Block& into) const {
    std::vector<std::int32_t> every(lists_.begin() + list_begin_[begin], lists_.begin() + list_begin_[end]);
    std::sort(every.begin(), every.end());
    for (std::size_t i = 0; i < every.size();) {
        std::size_t next = i;
        while (next < every.size() && every[next] == every[i]) ++next;
        (next - i == static_cast<std::size_t>(end - begin) ? into.all : into.some).push_back(every[i]);
        i = next;
    }
    into.words = static_cast<std::int32_t>((into.some.size() + 31) / 32);
    into.bits.assign(static_cast<std::size_t>(end - begin) * static_cast<std::size_t>(into.words), 0);
    for (std::int32_t row = begin; row < end; ++row) {
        for (std::int64_t k = list_begin_[row]; k < list_begin_[row + 1]; ++k) {
            const auto found = std::lower_bound(into.some.begin(), into.some.end(), lists_[k]);
            if (found == into.some.end() || *found != lists_[k]) continue;
            const auto at = found - into.some.begin();
            into.bits[static_cast<std::size_t>((row - begin) * into.words + at / 32)] |= 1u << (at % 32);
        }
    }
}

}  // namespace sapwood
