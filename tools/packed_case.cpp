// SPDX-License-Identifier: Apache-2.0
#include "packed_case.h"

#include <fnmatch.h>

#include "oracle/packed_oracle.h"
#include "support/compare.h"
#include "support/dfs_arrays.h"
#include "terminal.h"
#include "tune/packed_candidates.h"

namespace sapwood::tool {

using support::PackedSpec;
using support::PackedVariant;

bool names(const std::string& list, const std::string& name) {
    return ("," + list + ",").find("," + name + ",") != std::string::npos;
}

std::vector<PackedItem> packed_items(const Selection& cases) {
    std::vector<PackedItem> chosen;
    const auto specs = support::load_packed_workload(cases.file);
    const bool exact = std::any_of(specs.begin(), specs.end(), [&](const PackedSpec& s) { return s.name == cases.name; });
    for (const PackedSpec& spec : specs) {
        const bool glob = cases.name.find_first_of("*?[") != std::string::npos;
        const bool named = cases.name.empty() || (exact  ? spec.name == cases.name
                                                  : glob ? fnmatch(cases.name.c_str(), spec.name.c_str(), 0) == 0
                                                         : spec.name.starts_with(cases.name));
        if (!named || spec.block_causal || (!cases.set.empty() && spec.set != cases.set)) continue;
        for (const PackedVariant& v : support::variants(spec)) {
            if (!cases.heads.empty() && cases.heads != text("%d/%d", v.q_heads, v.kv_heads)) continue;
            if (cases.head_dim > 0 && cases.head_dim != v.head_dim) continue;
            if (!cases.dtype.empty() && (cases.dtype == "fp16") != (v.dtype == DType::fp16)) continue;
            if (cases.limit == 0 || chosen.size() < cases.limit) chosen.push_back({spec, v});
        }
    }
    if (chosen.empty()) throw Stop{kUsage, "no case of " + cases.file + " fits the selection"};
    return chosen;
}

PackedConfig packed_config(const std::string& given) {
    std::int32_t heads = 0;
    PackedConfig config = tune::as_packed(parse_config(given, &heads));
    config.heads = heads;
    return config;
}

PackedValues::PackedValues(const Pack& pack, const PackedVariant& shape, std::uint64_t seed)
    : q(pack.rows() * shape.q_heads * shape.head_dim),
      k(pack.keys() * shape.kv_heads * shape.head_dim),
      v(k.size()),
      out(q.size()),
      lse(static_cast<std::size_t>(pack.rows() * shape.q_heads)) {
    support::fill_values(shape.dtype, seed, support::Stream::q, 0, q.span());
    support::fill_values(shape.dtype, seed, support::Stream::k, 0, k.span());
    support::fill_values(shape.dtype, seed, support::Stream::v, 0, v.span());
    tensors = {.q = q.data(), .k = k.data(), .v = v.data(), .out = out.data(), .lse = lse.data()};
}

PackedOnDevice::PackedOnDevice(const DevicePtr& device, PackedValues& values)
    : values_(values),
      q_(device, values.q.data(), values.q.bytes()),
      k_(device, values.k.data(), values.k.bytes()),
      v_(device, values.v.data(), values.v.bytes()),
      out_(device, values.out.bytes()),
      lse_(device, values.lse.size() * 4) {
    tensors = {.q = q_.as(), .k = k_.as(), .v = v_.as(), .out = out_.as(), .lse = lse_.as<float>()};
    device->fill(out_.address(), 0xff, out_.bytes(), nullptr);
    device->fill(lse_.address(), 0xff, lse_.bytes(), nullptr);
    device->synchronize(nullptr);
}

void PackedOnDevice::download() const {
    out_.download(values_.out.data(), values_.out.bytes());
    lse_.download(values_.lse.data(), values_.lse.size() * 4);
}

Pack packed_trees(const PackedItem& item, bool arrays) {
    return arrays ? support::arrays_of(item.spec.segments).pack() : Pack::from_segments(item.spec.segments);
}

PackedArraysOnDevice::PackedArraysOnDevice(const DevicePtr& device, const PackedItem& item, PackedOnDevice& there) {
    const support::DfsArrays arrays = support::arrays_of(item.spec.segments);
    start_ = DeviceBuffer(device, arrays.start_q.data(), arrays.start_q.size() * 4);
    end_ = DeviceBuffer(device, arrays.end_k.data(), arrays.end_k.size() * 4);
    there.tensors.start_q = start_.as<std::int32_t>(), there.tensors.end_k = end_.as<std::int32_t>();
}

bool PackedChecked::passes(DType dtype) const {
    return out_error <= support::tolerance(dtype) && worst_row <= 4 * support::tolerance(dtype) && lse_error <= 1e-3;
}

/// Evenly spread rows, all heads.
PackedChecked check_packed(const PackedItem& item, const Pack& pack, const PackedValues& values, std::int32_t rows) {
    const PackedProblem problem = item.variant.problem();
    std::vector<std::int64_t> chosen;
    for (const std::int32_t row : support::spread(static_cast<std::int32_t>(pack.rows()), rows > 0 ? rows : 64))
        chosen.push_back(row);
    const auto want = oracle::packed_forward(problem, values.tensors, pack.rows(), pack.keys(),
                                             oracle::sees_segments(item.spec.segments), chosen);
    const auto dim = static_cast<std::size_t>(problem.head_dim), heads = static_cast<std::size_t>(problem.q_heads);
    std::vector<double> got(want.out.size()), got_lse(want.lse.size());
    PackedChecked checked;
    for (std::size_t i = 0; i < chosen.size(); ++i) {
        const auto row = static_cast<std::size_t>(chosen[i]);
        for (std::size_t e = 0; e < heads * dim; ++e)
            got[i * heads * dim + e] = static_cast<double>(support::widen(problem.dtype, values.out.data()[row * heads * dim + e]));
        for (std::size_t h = 0; h < heads; ++h) {
            got_lse[h * chosen.size() + i] = static_cast<double>(values.lse[h * static_cast<std::size_t>(pack.rows()) + row]);
            const std::size_t from = (i * heads + h) * dim;
            checked.worst_row = std::max(checked.worst_row, support::relative_error(std::span(got).subspan(from, dim),
                                                                                    std::span(want.out).subspan(from, dim)));
        }
    }
    checked.out_error = support::relative_error(got, want.out);
    checked.lse_error = support::max_abs_error(got_lse, want.lse);
    return checked;
}

PackedGradients packed_gradients(const PackedTensors& t, void* dq, void* dk, void* dv) {
    return {.q = t.q,
            .k = t.k,
            .v = t.v,
            .out = t.out,
            .dout = t.q,
            .lse = t.lse,
            .dq = dq,
            .dk = dk,
            .dv = dv,
            .start_q = t.start_q,
            .end_k = t.end_k};
}

double PackedGradientsChecked::worst() const { return std::max({dq_error, dk_error, dv_error}); }
// Not of the largest alone: a NaN is no larger than anything.
bool PackedGradientsChecked::passes(DType dtype) const {
    const double most = support::tolerance(dtype);
    return dq_error <= most && dk_error <= most && dv_error <= most;
}

PackedGradientsChecked check_packed_gradients(const PackedItem& item, const Pack& pack, const PackedValues& values,
                                              const PackedGradientValues& gradients, std::int32_t rows) {
    const PackedProblem problem = item.variant.problem();
    const auto chosen = [&](std::int64_t all) {
        std::vector<std::int64_t> some;
        for (const std::int32_t i : support::spread(static_cast<std::int32_t>(all), rows > 0 ? rows : 64)) some.push_back(i);
        return some;
    };
    const auto of_rows = chosen(pack.rows()), of_keys = chosen(pack.keys());
    const auto want =
        oracle::packed_backward_of(problem, values.tensors, pack.rows(), pack.keys(), oracle::sees_segments(item.spec.segments),
                                   gradients.dout.data(), of_rows, of_keys);
    const auto error = [&](const support::HalfBuffer& all, const std::vector<std::int64_t>& some,
                           const std::vector<double>& wanted) {
        const std::size_t width = wanted.size() / some.size();
        std::vector<double> got;
        for (const std::int64_t row : some)
            for (std::size_t e = 0; e < width; ++e)
                got.push_back(
                    static_cast<double>(support::widen(problem.dtype, all.data()[static_cast<std::size_t>(row) * width + e])));
        return support::relative_error(got, wanted);
    };
    return {.dq_error = error(gradients.dq, of_rows, want.dq),
            .dk_error = error(gradients.dk, of_keys, want.dk),
            .dv_error = error(gradients.dv, of_keys, want.dv)};
}

nlohmann::json to_json(const PackedItem& item, const Pack& pack) {
    return {{"case", item.spec.name},
            {"dtype", dtype_name(item.variant.dtype)},
            {"head_dim", item.variant.head_dim},
            {"q_heads", item.variant.q_heads},
            {"kv_heads", item.variant.kv_heads},
            {"tokens", pack.rows()},
            {"visible_pairs", pack.visible_pairs()}};
}

}  // namespace sapwood::tool
