// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

namespace sapwood {

/// Which of the `columns` tokens of a draft each of its `rows` query rows sees: what a verify step of speculative decoding puts
/// behind a prefix. Value type, host memory; a copy shares the bits.
class DraftMask {
public:
    DraftMask() = default;

    /// A tree of parents.size() draft tokens, one query row each: row i sees itself and its ancestors. parents[i] is a token of the
    /// tree, in any order; -1 hangs on the prefix and may occur several times. Throws Error{kInvalidArgument} naming the token: a
    /// parent out of range, or a token that is its own ancestor.
    static DraftMask from_parents(std::span<const std::int32_t> parents);

    /// Packed bits: row i is words[i * ceil(columns / 32) …], token t is bit t % 32 of word t / 32. Bits behind the last column are
    /// ignored. Throws Error{kInvalidArgument} if the sizes do not fit.
    static DraftMask from_bits(std::span<const std::uint32_t> words, std::int32_t rows, std::int32_t columns);

    /// LongSpec's form: `mask` is [rows, columns] of any integer type or bool, non-zero = visible, rows `row_stride` elements apart
    /// (0 = columns). `causal` is LongSpec's own rule on top: row i sees token t only if t <= columns - rows + i, so that with more
    /// rows than columns the first ones see nothing.
    template <class T>
    static DraftMask from_dense(const T* mask, std::int32_t rows, std::int32_t columns, std::int64_t row_stride = 0,
                                bool causal = false) {
        DraftMask made = blank(rows, columns);
        if (row_stride == 0) row_stride = columns;
        for (std::int32_t row = 0; row < rows; ++row) {
            const std::int64_t last = causal ? std::int64_t{columns} - rows + row : columns;
            for (std::int32_t t = 0; t < columns && t <= last; ++t) {
                if (mask[row * row_stride + t]) made.set(row, t);
            }
        }
        return made;
    }

    /// The bits are on the device, where the draft was made: DecodeTensors::mask gives them at the launch. A plan whose drafts are
    /// all of this kind needs no copy to the host, and cannot leave out what nobody sees.
    static DraftMask on_device(std::int32_t rows, std::int32_t columns);

    std::int32_t rows() const noexcept { return rows_; }
    std::int32_t columns() const noexcept { return columns_; }
    bool known() const noexcept { return words_ != nullptr; }  ///< false: on_device
    /// Words of 32 tokens a row; only if known().
    std::int32_t row_words() const noexcept { return (columns_ + 31) / 32; }
    const std::uint32_t* row(std::int32_t row) const noexcept { return words_->data() + std::int64_t{row} * row_words(); }
    bool sees(std::int32_t row_id, std::int32_t token) const noexcept { return row(row_id)[token / 32] >> (token % 32) & 1; }
    /// Tokens that a row sees; all columns if not known.
    std::int32_t seen(std::int32_t row) const noexcept;
    /// Every row sees every token: plain decode.
    bool all_seen() const noexcept;

private:
    static DraftMask blank(std::int32_t rows, std::int32_t columns);
    void set(std::int32_t row, std::int32_t token) noexcept {
        (*words_)[static_cast<std::size_t>(std::int64_t{row} * row_words() + token / 32)] |= 1u << (token % 32);
    }

    std::int32_t rows_ = 0, columns_ = 0;
    std::shared_ptr<std::vector<std::uint32_t>> words_;  // not written once made
};

}  // namespace sapwood
