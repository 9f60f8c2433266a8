// SPDX-License-Identifier: Apache-2.0
#include "oracle/packed_oracle.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

#include "support/half.h"
#include "support/parallel.h"

namespace sapwood::oracle {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

std::size_t at(std::int64_t i) { return static_cast<std::size_t>(i); }

/// All 65536 values of a format: widening is the inner loop.
const float* widened(DType dtype) {
    static const auto make = [](DType type) {
        std::vector<float> table(65536);
        for (std::uint32_t i = 0; i < 65536; ++i) table[i] = support::widen(type, static_cast<std::uint16_t>(i));
        return table;
    };
    static const std::vector<float> fp16 = make(DType::fp16), bf16 = make(DType::bf16);
    return (dtype == DType::fp16 ? fp16 : bf16).data();
}

/// The tensors of one call, by row and query head.
struct Inputs {
    struct Tensor {
        const std::uint16_t* data;
        std::int64_t token, head;
        Tensor(const void* from, std::int64_t token_stride, std::int64_t head_stride, std::int64_t heads, std::int64_t dim)
            : data(static_cast<const std::uint16_t*>(from)),
              token(token_stride ? token_stride : heads * dim),
              head(head_stride ? head_stride : dim) {}
        std::vector<double> row(const float* table, std::int64_t i, std::int64_t h, std::int64_t dim) const {
            std::vector<double> values;
            for (std::int64_t d = 0; d < dim; ++d) values.push_back(static_cast<double>(table[data[i * token + h * head + d]]));
            return values;
        }
    };
    std::int64_t dim, dim_v, heads, kv_heads, rows, keys;
    Tensor q, k, v;
    double scale, cap;
    const float* table;

    Inputs(const PackedProblem& p, const PackedTensors& t, std::int64_t row_count, std::int64_t key_count)
        : dim(p.head_dim),
          dim_v(p.head_dim_v ? p.head_dim_v : p.head_dim),
          heads(p.q_heads),
          kv_heads(p.kv_heads),
          rows(row_count),
          keys(key_count),
          q(t.q, t.q_token_stride, t.q_head_stride, heads, dim),
          k(t.k, t.k_token_stride, t.k_head_stride, kv_heads, dim),
          v(t.v, t.v_token_stride, t.v_head_stride, kv_heads, dim_v),
          scale(p.scale != 0 ? static_cast<double>(p.scale) : 1 / std::sqrt(static_cast<double>(p.head_dim))),
          cap(static_cast<double>(p.softcap)),
          table(widened(p.dtype)) {}
    std::int64_t kv_head(std::int64_t head) const { return head / (heads / kv_heads); }
    std::vector<double> query(std::int64_t row, std::int64_t head) const { return q.row(table, row, head, dim); }
    std::vector<double> key(std::int64_t row, std::int64_t head) const { return k.row(table, row, kv_head(head), dim); }
    std::vector<double> value(std::int64_t row, std::int64_t head) const { return v.row(table, row, kv_head(head), dim_v); }
};

double dot(std::span<const double> a, std::span<const double> b) {
    double sum = 0;
    for (std::size_t i = 0; i < a.size(); ++i) sum += a[i] * b[i];
    return sum;
}

/// Keys that a row sees, their weights, and the slope of score against scale * q·k (1 without a soft-cap).
struct Row {
    std::vector<std::int64_t> keys;
    std::vector<double> weight, slope;
    double lse = -kInfinity;
};
Row attend(const Inputs& x, const Sees& sees, std::int64_t row, std::int64_t head) {
    Row r;
    double top = -kInfinity, sum = 0;
    const std::vector<double> query = x.query(row, head);
    for (std::int64_t k = 0; k < x.keys; ++k) {
        if (!sees(row, k)) continue;
        double s = x.scale * dot(query, x.key(k, head)), slope = 1;
        if (x.cap != 0) {
            const double t = std::tanh(s / x.cap);
            s = x.cap * t, slope = 1 - t * t;
        }
        r.keys.push_back(k);
        r.weight.push_back(s);
        r.slope.push_back(slope);
        top = std::max(top, s);
    }
    for (double& w : r.weight) sum += w = std::exp(w - top);
    for (double& w : r.weight) w /= sum;
    if (sum > 0) r.lse = top + std::log(sum);
    return r;
}

}  // namespace

Sees sees_segments(std::span<const Segment> segments) {
    std::vector<std::int32_t> segment_of;
    for (std::size_t i = 0; i < segments.size(); ++i)
        segment_of.insert(segment_of.end(), at(segments[i].tokens), static_cast<std::int32_t>(i));
    return [segment_of, all = std::vector<Segment>(segments.begin(), segments.end())](std::int64_t row, std::int64_t key) {
        const std::int32_t own = segment_of[at(row)], other = segment_of[at(key)];
        if (own == other) return key <= row;
        for (std::int32_t i = own; i != -1; i = all[at(i)].parent)
            if (i == other) return true;
        return false;
    };
}

Sees sees_sequences(std::span<const std::int32_t> cu_q, std::span<const std::int32_t> cu_k, const PackedMask& mask) {
    return [q = std::vector<std::int32_t>(cu_q.begin(), cu_q.end()), k = std::vector<std::int32_t>(cu_k.begin(), cu_k.end()), mask](
               std::int64_t row, std::int64_t key) {
        for (std::size_t i = 0; i + 1 < q.size(); ++i) {
            if (row < q[i] || row >= q[i + 1]) continue;
            if (key < k[i] || key >= k[i + 1]) return false;
            const std::int64_t own = row - q[i] + (k[i + 1] - k[i]) - (q[i + 1] - q[i]), other = key - k[i];
            if (mask.causal && other > own) return false;
            if (mask.window_right >= 0 && other > own + mask.window_right) return false;
            return mask.window_left < 0 || other >= own - mask.window_left;
        }
        return false;
    };
}

Sees sees_arrays(Sees sequences, std::span<const std::int32_t> start_q, std::span<const std::int32_t> end_k) {
    return [sequences = std::move(sequences), start = std::vector<std::int32_t>(start_q.begin(), start_q.end()),
            end = std::vector<std::int32_t>(end_k.begin(), end_k.end())](std::int64_t row, std::int64_t key) {
        return start[at(row)] <= end[at(key)] && sequences(row, key);
    };
}

PackedResult packed_forward(const PackedProblem& problem, const PackedTensors& tensors, std::int64_t rows, std::int64_t keys,
                            const Sees& sees, std::span<const std::int64_t> chosen) {
    const Inputs x(problem, tensors, rows, keys);
    std::vector<std::int64_t> all;
    if (chosen.empty()) {
        for (std::int64_t row = 0; row < rows; ++row) all.push_back(row);
        chosen = all;
    }
    const auto count = static_cast<std::int64_t>(chosen.size());
    PackedResult result;
    result.out.resize(at(count * x.heads * x.dim_v));
    result.lse.resize(at(count * x.heads));
    support::parallel_for(count * x.heads, 1, [&](std::int64_t begin, std::int64_t end) {
        for (std::int64_t i = begin; i < end; ++i) {
            const std::int64_t head = i % x.heads;
            const Row r = attend(x, sees, chosen[at(i / x.heads)], head);
            double* out = &result.out[at(i * x.dim_v)];
            for (std::size_t j = 0; j < r.keys.size(); ++j) {
                const std::vector<double> value = x.value(r.keys[j], head);
                for (std::int64_t d = 0; d < x.dim_v; ++d) out[d] += r.weight[j] * value[at(d)];
            }
            result.lse[at(head * count + i / x.heads)] = r.lse;
        }
    });
    return result;
}

PackedGradients packed_backward(const PackedProblem& problem, const PackedTensors& tensors, std::int64_t rows, std::int64_t keys,
                                const Sees& sees, std::span<const double> dout, std::span<const double> dlse) {
    const Inputs x(problem, tensors, rows, keys);
    PackedGradients g;
    g.dq.resize(at(rows * x.heads * x.dim));
    g.dk.resize(at(keys * x.kv_heads * x.dim));
    g.dv.resize(at(keys * x.kv_heads * x.dim_v));
    support::parallel_for(x.kv_heads, 1, [&](std::int64_t head_begin, std::int64_t head_end) {
        const std::int64_t group = x.heads / x.kv_heads;
        for (std::int64_t head = head_begin * group; head < head_end * group; ++head) {
            for (std::int64_t row = 0; row < rows; ++row) {
                const Row r = attend(x, sees, row, head);
                const std::span<const double> dy = dout.subspan(at((row * x.heads + head) * x.dim_v), at(x.dim_v));
                const std::vector<double> query = x.query(row, head);
                std::vector<double> dp(r.keys.size());
                double mean = 0;  // sum of weight * dp: rowsum(out * dout)
                for (std::size_t j = 0; j < r.keys.size(); ++j) mean += r.weight[j] * (dp[j] = dot(dy, x.value(r.keys[j], head)));
                // d lse / d score is the weight itself.
                const double extra = dlse.empty() ? 0 : dlse[at(head * rows + row)];
                double* dq = &g.dq[at((row * x.heads + head) * x.dim)];
                for (std::size_t j = 0; j < r.keys.size(); ++j) {
                    const std::int64_t row_k = r.keys[j] * x.kv_heads + x.kv_head(head);
                    const double ds = r.weight[j] * (dp[j] - mean + extra) * r.slope[j] * x.scale;
                    double *dk = &g.dk[at(row_k * x.dim)], *dv = &g.dv[at(row_k * x.dim_v)];
                    const std::vector<double> key = x.key(r.keys[j], head);
                    for (std::int64_t d = 0; d < x.dim; ++d) {
                        dq[d] += ds * key[at(d)];
                        dk[d] += ds * query[at(d)];
                    }
                    for (std::int64_t d = 0; d < x.dim_v; ++d) dv[d] += r.weight[j] * dy[at(d)];
                }
            }
        }
    });
    return g;
}

PackedGradients packed_backward_of(const PackedProblem& problem, const PackedTensors& tensors, std::int64_t rows, std::int64_t keys,
                                   const Sees& sees, const std::uint16_t* dout, std::span<const std::int64_t> of_rows,
                                   std::span<const std::int64_t> of_keys) {
    const Inputs x(problem, tensors, rows, keys);
    const Inputs::Tensor out(tensors.out, 0, 0, x.heads, x.dim_v), dy(dout, 0, 0, x.heads, x.dim_v);
    /// Of a pair: its weight, and the gradient of its score before the scale.
    const auto pair = [&](std::int64_t row, std::int64_t key, std::int64_t head, const std::vector<double>& query,
                          const std::vector<double>& given) {
        double s = x.scale * dot(query, x.key(key, head)), slope = 1;
        if (x.cap != 0) {
            const double t = std::tanh(s / x.cap);
            s = x.cap * t, slope = 1 - t * t;
        }
        const double weight = std::exp(s - static_cast<double>(tensors.lse[head * rows + row]));
        const double mean = dot(out.row(x.table, row, head, x.dim_v), given);
        return std::pair(weight, weight * (dot(given, x.value(key, head)) - mean) * slope * x.scale);
    };
    PackedGradients g;
    g.dq.resize(of_rows.size() * at(x.heads * x.dim));
    g.dk.resize(of_keys.size() * at(x.kv_heads * x.dim));
    g.dv.resize(of_keys.size() * at(x.kv_heads * x.dim_v));
    support::parallel_for(std::ssize(of_rows) * x.heads, 1, [&](std::int64_t begin, std::int64_t end) {
        for (std::int64_t i = begin; i < end; ++i) {
            const std::int64_t row = of_rows[at(i / x.heads)], head = i % x.heads;
            const std::vector<double> query = x.query(row, head), given = dy.row(x.table, row, head, x.dim_v);
            for (std::int64_t k = 0; k < keys; ++k) {
                if (!sees(row, k)) continue;
                const double ds = pair(row, k, head, query, given).second;
                const std::vector<double> key = x.key(k, head);
                for (std::int64_t d = 0; d < x.dim; ++d) g.dq[at(i * x.dim + d)] += ds * key[at(d)];
            }
        }
    });
    support::parallel_for(std::ssize(of_keys) * x.kv_heads, 1, [&](std::int64_t begin, std::int64_t end) {
        const std::int64_t group = x.heads / x.kv_heads;
        for (std::int64_t i = begin; i < end; ++i) {
            const std::int64_t k = of_keys[at(i / x.kv_heads)];
            for (std::int64_t head = i % x.kv_heads * group, last = head + group; head < last; ++head) {
                for (std::int64_t row = 0; row < rows; ++row) {
                    if (!sees(row, k)) continue;
                    const std::vector<double> query = x.query(row, head), given = dy.row(x.table, row, head, x.dim_v);
                    const auto [weight, ds] = pair(row, k, head, query, given);
                    for (std::int64_t d = 0; d < x.dim; ++d) g.dk[at(i * x.dim + d)] += ds * query[at(d)];
                    for (std::int64_t d = 0; d < x.dim_v; ++d) g.dv[at(i * x.dim_v + d)] += weight * given[at(d)];
                }
            }
        }
    });
    return g;
}

}  // namespace sapwood::oracle
