// SPDX-License-Identifier: Apache-2.0
#include "kernel/merge_scene.h"

#include <cmath>
#include <cstring>
#include <limits>
#include <span>

#include "support/compare.h"
#include "support/half.h"
#include "support/rng.h"

namespace sapwood::test {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

/// Elements from a head, row and part to the next, packed or with gaps.
struct Spacing {
    std::int64_t head, row, part;
};

Spacing spacing(const MergeCase& which, std::int64_t width, bool gaps) {
    const std::int64_t gap = !gaps ? 0 : width == 1 ? 1 : 8;
    Spacing at{};
    at.head = width + gap;
    const std::int64_t one = which.heads * at.head + 2 * gap;
    if (which.layout == MergeLayout::rows_parts && !which.indptr) {
        at.part = one, at.row = which.parts * one + gap;
    } else {
        at.row = one, at.part = which.indptr ? one : which.rows * one + 3 * gap;
    }
    return at;
}

}  // namespace

StateBuffer::StateBuffer(StateDType type, std::int64_t count)
    : dtype(type), bytes(static_cast<std::size_t>(count) * state_dtype_bytes(type), 0xff) {}

double StateBuffer::get(std::int64_t at) const {
    if (dtype == StateDType::fp32) {
        float value;
        std::memcpy(&value, &bytes[static_cast<std::size_t>(at) * 4], 4);
        return value;
    }
    std::uint16_t half;
    std::memcpy(&half, &bytes[static_cast<std::size_t>(at) * 2], 2);
    return dtype == StateDType::fp16 ? support::from_fp16(half) : support::from_bf16(half);
}

void StateBuffer::set(std::int64_t at, double value) {
    const float single = static_cast<float>(value);
    if (dtype == StateDType::fp32) {
        std::memcpy(&bytes[static_cast<std::size_t>(at) * 4], &single, 4);
        return;
    }
    const std::uint16_t half = dtype == StateDType::fp16 ? support::to_fp16(single) : support::to_bf16(single);
    std::memcpy(&bytes[static_cast<std::size_t>(at) * 2], &half, 2);
}

MergeProblem MergeCase::problem() const {
    return {.heads = heads,
            .head_dim = head_dim,
            .part_dtype = part,
            .out_dtype = out,
            .layout = layout,
            .lse_base = base,
            .usual_parts = hint ? parts : 2};
}

std::string MergeCase::to_string() const {
    return std::string(name) + ": " + std::to_string(rows) + " rows x " + std::to_string(heads) + " x " + std::to_string(head_dim) +
           ", " + std::to_string(parts) + " parts, " + state_dtype_name(part) + " to " + state_dtype_name(out);
}

MergeScene::MergeScene(const MergeCase& given, std::uint64_t seed) : which(given) {
    place();
    std::uint64_t number = 0;
    const auto next = [&] { return static_cast<double>(support::value(seed, support::Stream::v, number++)); };
    for (std::int64_t row = 0; row < which.rows; ++row) {
        for (std::int32_t head = 0; head < which.heads; ++head) {
            const std::int64_t n = row * which.heads + head;
            for (std::int32_t i = 0; i < count(row); ++i) {
                oracle::State state = {{}, next() * which.spread};
                if (n % 11 == 5 || (n % 3 == 0 && i == n % which.parts)) {
                    state.lse = n / 3 % 2 == 0 ? kInfinity : -kInfinity;
                } else {
                    for (std::int32_t d = 0; d < which.head_dim; ++d) state.out.push_back(next());
                }
                set_part(row, head, i, state);
            }
        }
    }
}

void MergeScene::place() {
    const bool gaps = which.places == MergePlaces::padded, first = which.places == MergePlaces::heads_first;
    const std::int64_t per_batch = which.rows / which.batches, heads = which.heads, dim = which.head_dim;
    const auto strides = [&](std::int64_t width, bool of_parts, std::int64_t* part_stride) -> MergeStrides {
        if (first) {
            if (part_stride != nullptr) *part_stride = which.rows * heads * width;
            return {heads * per_batch * width, width, per_batch * width};
        }
        MergeCase rows = which;  // a result has the rows of one part
        if (!of_parts) rows.layout = MergeLayout::separate;
        const Spacing at = spacing(rows, width, gaps);
        if (part_stride != nullptr) *part_stride = at.part;
        return {per_batch * at.row, at.row, at.head};
    };
    part_out_stride_ = strides(dim, true, &part_stride_);
    part_lse_stride_ = strides(1, true, &lse_part_stride_);
    out_stride_ = which.in_place ? part_out_stride_ : strides(dim, false, nullptr);
    lse_stride_ = which.in_place ? part_lse_stride_ : strides(1, false, nullptr);

    std::int64_t results = which.parts;  // how many results one tensor holds for a row, or in all with indptr
    if (which.indptr) {
        indptr = {0};
        for (std::int64_t row = 0; row < which.rows; ++row) {
            const auto length = static_cast<std::int32_t>(row * 7 % (which.parts + 1));
            indptr.push_back(row == 2 && indptr.back() > 0 ? indptr.back() - 1 : indptr.back() + length);
        }
        results = *std::max_element(indptr.begin(), indptr.end());
    }
    const bool separate = which.layout == MergeLayout::separate;
    const auto size = [&](const MergeStrides& stride, std::int64_t width, std::int64_t part, bool of_parts) {
        std::int64_t end = (heads - 1) * stride.head + width;
        if (!of_parts || !which.indptr) end += (which.batches - 1) * stride.batch + (per_batch - 1) * stride.row;
        return end + (of_parts && !separate ? (results - 1) * part : 0);
    };
    for (std::int32_t i = 0; i < (separate ? which.parts : 1); ++i) {
        parts.emplace_back(which.part, size(part_out_stride_, dim, part_stride_, true));
        lses.emplace_back(StateDType::fp32, size(part_lse_stride_, 1, lse_part_stride_, true));
    }
    out = StateBuffer(which.out, size(out_stride_, dim, 0, false));
    lse = StateBuffer(StateDType::fp32, size(lse_stride_, 1, 0, false));

    const bool packed = which.places == MergePlaces::packed && !which.in_place;  // then strides are left to the library
    for (std::size_t i = 0; i < parts.size(); ++i) {
        tensors.parts[i].out = parts[i].data();
        tensors.parts[i].lse = reinterpret_cast<float*>(lses[i].data());
        if (!packed) tensors.parts[i].out_stride = part_out_stride_, tensors.parts[i].lse_stride = part_lse_stride_;
    }
    tensors.count = which.indptr ? 0 : which.parts;
    if (!packed && !separate) tensors.part_stride = part_stride_, tensors.lse_part_stride = lse_part_stride_;
    tensors.indptr = which.indptr ? indptr.data() : nullptr;
    tensors.out = out_buffer().data();
    tensors.lse = which.lse ? reinterpret_cast<float*>(lse_buffer().data()) : nullptr;
    if (!packed) tensors.out_stride = out_stride_, tensors.lse_stride = lse_stride_;
    tensors.rows_per_batch = which.batches > 1 ? per_batch : 0;
}

std::int64_t MergeScene::at(const MergeStrides& stride, std::int64_t row, std::int32_t head) const {
    const std::int64_t per_batch = which.rows / which.batches;
    return row / per_batch * stride.batch + row % per_batch * stride.row + head * stride.head;
}

std::int32_t MergeScene::count(std::int64_t row) const {
    if (!which.indptr) return which.parts;
    const auto r = static_cast<std::size_t>(row);
    return std::max(0, indptr[r + 1] - indptr[r]);
}

oracle::State MergeScene::part(std::int64_t row, std::int32_t head, std::int32_t i) const {
    const auto& from = parts_before_.empty() ? parts : parts_before_;
    const auto& from_lse = lses_before_.empty() ? lses : lses_before_;
    const bool separate = which.layout == MergeLayout::separate;
    const std::size_t tensor = separate ? static_cast<std::size_t>(i) : 0;
    const std::int64_t index = separate ? 0 : which.indptr ? indptr[static_cast<std::size_t>(row)] + i : i;
    const MergeStrides none = {0, 0, part_out_stride_.head}, no_lse = {0, 0, part_lse_stride_.head};
    const std::int64_t begin = at(which.indptr ? none : part_out_stride_, row, head) + index * part_stride_;
    oracle::State state = {
        {}, from_lse[tensor].get(at(which.indptr ? no_lse : part_lse_stride_, row, head) + index * lse_part_stride_)};
    for (std::int32_t d = 0; d < which.head_dim; ++d) state.out.push_back(from[tensor].get(begin + d));
    return state;
}

void MergeScene::set_part(std::int64_t row, std::int32_t head, std::int32_t i, const oracle::State& state) {
    const bool separate = which.layout == MergeLayout::separate;
    const std::size_t tensor = separate ? static_cast<std::size_t>(i) : 0;
    const std::int64_t index = separate ? 0 : which.indptr ? indptr[static_cast<std::size_t>(row)] + i : i;
    const MergeStrides none = {0, 0, part_out_stride_.head}, no_lse = {0, 0, part_lse_stride_.head};
    const std::int64_t begin = at(which.indptr ? none : part_out_stride_, row, head) + index * part_stride_;
    lses[tensor].set(at(which.indptr ? no_lse : part_lse_stride_, row, head) + index * lse_part_stride_, state.lse);
    for (std::size_t d = 0; d < static_cast<std::size_t>(which.head_dim); ++d)  // an empty part has nothing: it stays NaN
        parts[tensor].set(begin + static_cast<std::int64_t>(d), d < state.out.size() ? state.out[d] : std::nan(""));
}

oracle::State MergeScene::result(std::int64_t row, std::int32_t head) const {
    oracle::State state;
    const std::int64_t begin = at(out_stride_, row, head);
    for (std::int32_t d = 0; d < which.head_dim; ++d) state.out.push_back(out_buffer().get(begin + d));
    state.lse = which.lse ? lse_buffer().get(at(lse_stride_, row, head)) : 0;
    return state;
}

std::string MergeScene::fault() const {
    std::vector<bool> written(out_buffer().bytes.size()), lse_written(lse_buffer().bytes.size());
    std::vector<double> got, want;
    double lse_error = 0;
    for (std::int64_t row = 0; row < which.rows; ++row) {
        for (std::int32_t head = 0; head < which.heads; ++head) {
            const std::string where = "row " + std::to_string(row) + " head " + std::to_string(head);
            std::vector<oracle::State> states;
            for (std::int32_t i = 0; i < count(row); ++i) states.push_back(part(row, head, i));
            const oracle::State merged =
                oracle::merge(states, static_cast<std::size_t>(which.head_dim), which.base == LseBase::two ? 2 : std::exp(1.0));
            const oracle::State here = result(row, head);
            got.insert(got.end(), here.out.begin(), here.out.end());
            want.insert(want.end(), merged.out.begin(), merged.out.end());
            if (support::relative_error(here.out, merged.out) > 4 * tolerance(which.out)) return where + " is wrong";
            if (std::isinf(merged.lse)) {
                for (const double x : here.out)
                    if (x != 0) return where + " has only empty parts and holds " + std::to_string(x);
                if (which.lse && here.lse != -kInfinity) return where + " has only empty parts and lse " + std::to_string(here.lse);
            } else if (which.lse) {
                if (std::isnan(here.lse)) return where + " has lse NaN";
                lse_error = std::max(lse_error, std::abs(here.lse - merged.lse));
            }
            const auto mark = [](std::vector<bool>& bytes, std::int64_t begin, std::int64_t count, std::size_t size) {
                for (std::size_t i = 0; i < static_cast<std::size_t>(count) * size; ++i)
                    bytes[static_cast<std::size_t>(begin) * size + i] = true;
            };
            mark(written, at(out_stride_, row, head), which.head_dim, state_dtype_bytes(which.out));
            if (which.lse) mark(lse_written, at(lse_stride_, row, head), 1, 4);
        }
    }
    if (const double error = support::relative_error(got, want); !(error <= tolerance(which.out)))
        return "relative error " + std::to_string(error);
    if (lse_error > 1e-5 * (1 + 4 * which.spread)) return "lse is off by " + std::to_string(lse_error);
    for (std::size_t i = 0; i < written.size(); ++i)
        if (!written[i] && out_buffer().bytes[i] != out_before_.bytes[i])
            return "byte " + std::to_string(i) + " of out is nobody's";
    for (std::size_t i = 0; i < lse_written.size(); ++i)
        if (!lse_written[i] && lse_buffer().bytes[i] != lse_before_.bytes[i])
            return "byte " + std::to_string(i) + " of lse is nobody's";
    return {};
}

void MergeScene::run(const Target& target) {
    run(target, [&](const MergeTensors& given) { target.engine->merge_states(which.problem(), given, which.rows); });
}

void MergeScene::run(const Target& target, const std::function<void(const MergeTensors&)>& call) {
    parts_before_ = parts, lses_before_ = lses, out_before_ = out_buffer(), lse_before_ = lse_buffer();
    if (!target.device) return call(tensors);
    std::vector<std::uint64_t> owned;
    const auto copy = [&](const void* from, std::size_t bytes) {
        owned.push_back(target.device->allocate(std::max<std::size_t>(bytes, 16)));
        target.device->copy_to_device(owned.back(), from, bytes, nullptr);
        return reinterpret_cast<void*>(owned.back());
    };
    MergeTensors on_device = tensors;
    for (std::size_t i = 0; i < parts.size(); ++i) {
        on_device.parts[i].out = copy(parts[i].data(), parts[i].bytes.size());
        on_device.parts[i].lse = static_cast<const float*>(copy(lses[i].data(), lses[i].bytes.size()));
    }
    if (which.indptr) on_device.indptr = static_cast<const std::int32_t*>(copy(indptr.data(), indptr.size() * 4));
    on_device.out = which.in_place ? const_cast<void*>(on_device.parts[0].out) : copy(out.data(), out.bytes.size());
    if (which.lse)
        on_device.lse =
            which.in_place ? const_cast<float*>(on_device.parts[0].lse) : static_cast<float*>(copy(lse.data(), lse.bytes.size()));
    target.device->synchronize(nullptr);
    call(on_device);
    target.device->synchronize(nullptr);
    const auto fetch = [&](StateBuffer& to, const void* from) {
        target.device->copy_to_host(to.data(), reinterpret_cast<std::uint64_t>(from), to.bytes.size(), nullptr);
    };
    fetch(out_buffer(), on_device.out);
    if (which.lse) fetch(lse_buffer(), on_device.lse);
    for (const std::uint64_t address : owned) target.device->free(address);
}

double tolerance(StateDType dtype) {
    switch (dtype) {
        case StateDType::fp16:
            return support::tolerance(DType::fp16);
        case StateDType::bf16:
            return support::tolerance(DType::bf16);
        case StateDType::fp32:
            return 4e-6;
    }
    return 0;
}

}  // namespace sapwood::test
