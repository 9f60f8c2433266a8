// SPDX-License-Identifier: Apache-2.0
// Merges small enough for the host target: their memory, on the host or copied to a device, and the judgement of the oracle.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "kernel/decode_cases.h"
#include "oracle/merge_oracle.h"

namespace sapwood::test {

/// Elements of a StateDType in memory; made as NaN.
class StateBuffer {
public:
    StateBuffer() = default;
    StateBuffer(StateDType dtype, std::int64_t count);
    double get(std::int64_t at) const;
    void set(std::int64_t at, double value);
    void poison();
    bool poisoned(std::int64_t at) const;
    std::uint8_t* data() { return bytes.data(); }

    StateDType dtype{};
    std::vector<std::uint8_t> bytes;
};

enum class MergePlaces {
    packed,       ///< as the layout has it
    padded,       ///< gaps behind every head and every row
    heads_first,  ///< out [batch, heads, rows, dim] and lse [batch, heads, rows]: FlashAttention's and LongSpec's
};

struct MergeCase {
    const char* name = "";
    std::int32_t heads = 3, head_dim = 128;
    StateDType part = StateDType::bf16, out = StateDType::bf16;
    MergeLayout layout = MergeLayout::rows_parts;
    std::int32_t parts = 2;
    std::int64_t rows = 5;
    MergePlaces places = MergePlaces::packed;
    std::int64_t batches = 1;  ///< rows are those of all of them
    LseBase base = LseBase::natural;
    bool indptr = false;  ///< row r has (r * 7) % (parts + 1) parts; one row's end lies before its begin
    bool lse = true;      ///< is asked for
    bool in_place = false;
    bool hint = true;   ///< usual_parts says how many there are
    double spread = 3;  ///< of the logarithms

    MergeProblem problem() const;
    std::string to_string() const;
};

/// Host memory of a case. Of each three rows and heads one has an empty part (-inf and +inf in turn), now and then all are; what an
/// empty part holds is NaN, and so are gaps.
class MergeScene {
public:
    explicit MergeScene(const MergeCase& which, std::uint64_t seed = 1);

    MergeCase which;
    MergeTensors tensors;
    std::vector<StateBuffer> parts;  // one, or one a part
    std::vector<StateBuffer> lses;
    StateBuffer out, lse;  // unused where in place
    std::vector<std::int32_t> indptr;

    std::int32_t count(std::int64_t row) const;
    oracle::State part(std::int64_t row, std::int32_t head, std::int32_t part) const;  // as it was before the run
    void set_part(std::int64_t row, std::int32_t head, std::int32_t part, const oracle::State& state);
    oracle::State result(std::int64_t row, std::int32_t head) const;
    /// What is wrong with the result; empty: nothing.
    std::string fault() const;
    /// Merges, on a device by way of copies.
    void run(const Target& target);
    void run(const Target& target, const std::function<void(const MergeTensors&)>& call);

private:
    std::int64_t at(const MergeStrides& stride, std::int64_t row, std::int32_t head) const;
    void place();
    StateBuffer& out_buffer() { return which.in_place ? parts[0] : out; }
    StateBuffer& lse_buffer() { return which.in_place ? lses[0] : lse; }
    const StateBuffer& out_buffer() const { return which.in_place ? parts[0] : out; }
    const StateBuffer& lse_buffer() const { return which.in_place ? lses[0] : lse; }

    // As the tensors have them, with the packed ones written out.
    MergeStrides out_stride_, lse_stride_, part_out_stride_, part_lse_stride_;
    std::int64_t part_stride_ = 0, lse_part_stride_ = 0;
    std::vector<StateBuffer> parts_before_, lses_before_;  // the last run
    StateBuffer out_before_, lse_before_;
};

double tolerance(StateDType dtype);

}  // namespace sapwood::test

/// The same test on both targets: body(target).
#define SAPWOOD_MERGE_ON_BOTH(name, body)                          \
    TEST_CASE("merge on host: " name) { body(host_target()); }     \
    TEST_CASE("merge on gpu: " name) {                             \
        if (sapwood::support::gpu_available()) body(gpu_target()); \
    }
