// SPDX-License-Identifier: Apache-2.0
#include "sapwood/draft.h"

#include <algorithm>
#include <bit>
#include <string>

#include "base/error.h"

namespace sapwood {
namespace {

constexpr std::int32_t kMostColumns = 1 << 20;  // abi::Chunk holds a column in 24 bits of half words

std::string size_of(std::int64_t rows, std::int64_t columns) {
    return std::to_string(rows) + " rows of " + std::to_string(columns) + " tokens";
}

void check_size(std::int64_t rows, std::int64_t columns) {
    if (rows < 0 || columns < 0 || columns > kMostColumns || rows > kMostColumns) {
        raise(ErrorCode::kInvalidArgument,
              "a draft mask of " + size_of(rows, columns) + "; both must be 0 to " + std::to_string(kMostColumns));
    }
}

}  // namespace

DraftMask DraftMask::blank(std::int32_t rows, std::int32_t columns) {
    check_size(rows, columns);
    DraftMask made;
    made.rows_ = rows;
    made.columns_ = columns;
    made.words_ = std::make_shared<std::vector<std::uint32_t>>(static_cast<std::size_t>(rows) * made.row_words());
    return made;
}

DraftMask DraftMask::from_parents(std::span<const std::int32_t> parents) {
    check_size(static_cast<std::int64_t>(parents.size()), static_cast<std::int64_t>(parents.size()));
    const auto count = static_cast<std::int32_t>(parents.size());
    for (std::int32_t i = 0; i < count; ++i) {
        if (parents[i] < -1 || parents[i] >= count) {
            raise(ErrorCode::kInvalidArgument, "draft token " + std::to_string(i) + " names parent " + std::to_string(parents[i]) +
                                                   "; there are " + std::to_string(count) + " tokens, and -1 hangs on the prefix");
        }
    }
    DraftMask made = blank(count, count);
    const auto words = static_cast<std::size_t>(made.row_words());
    std::vector<char> done(parents.size(), 0);
    std::vector<std::int32_t> path;
    for (std::int32_t start = 0; start < count; ++start) {
        // Up to the first ancestor whose row is there, then down again: each row is its parent's and itself.
        path.clear();
        for (std::int32_t i = start; i >= 0 && !done[i]; i = parents[i]) {
            if (static_cast<std::int32_t>(path.size()) > count) {
                raise(ErrorCode::kInvalidArgument,
                      "draft token " + std::to_string(start) + " is its own ancestor; parents must form trees");
            }
            path.push_back(i);
        }
        for (; !path.empty(); path.pop_back()) {
            const std::int32_t i = path.back();
            if (parents[i] >= 0) {
                std::copy_n(made.words_->begin() + static_cast<std::ptrdiff_t>(parents[i] * words), words,
                            made.words_->begin() + static_cast<std::ptrdiff_t>(i * words));
            }
            made.set(i, i);
            done[i] = 1;
        }
    }
    return made;
}

DraftMask DraftMask::from_bits(std::span<const std::uint32_t> words, std::int32_t rows, std::int32_t columns) {
    DraftMask made = blank(rows, columns);
    if (words.size() != made.words_->size()) {
        raise(ErrorCode::kInvalidArgument, "a draft mask of " + size_of(rows, columns) + " has " +
                                               std::to_string(made.words_->size()) + " words of 32 bits; " +
                                               std::to_string(words.size()) + " were given");
    }
    std::copy(words.begin(), words.end(), made.words_->begin());
    if (columns % 32 != 0) {
        const auto width = static_cast<std::size_t>(made.row_words());
        for (std::size_t last = width - 1; last < made.words_->size(); last += width) {
            (*made.words_)[last] &= (1u << (columns % 32)) - 1;
        }
    }
    return made;
}

DraftMask DraftMask::on_device(std::int32_t rows, std::int32_t columns) {
    check_size(rows, columns);
    DraftMask made;
    made.rows_ = rows;
    made.columns_ = columns;
    return made;
}

std::int32_t DraftMask::seen(std::int32_t row_id) const noexcept {
    if (!known()) return columns_;
    std::int32_t count = 0;
    for (std::int32_t w = 0; w < row_words(); ++w) count += std::popcount(row(row_id)[w]);
    return count;
}

bool DraftMask::all_seen() const noexcept {
    if (!known()) return rows_ == 0 || columns_ == 0;
    for (std::int32_t r = 0; r < rows_; ++r) {
        if (seen(r) != columns_) return false;
    }
    return true;
}

}  // namespace sapwood
