// SPDX-License-Identifier: Apache-2.0
// Memory of the decode tests: on the host, on a device, filled, poisoned and judged.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "kernel/decode_cases.h"
#include "oracle/decode_oracle.h"
#include "support/compare.h"
#include "support/half.h"
#include "support/rng.h"

namespace sapwood::test {
namespace {

using support::Stream;

constexpr std::uint64_t kSeed = 20;
constexpr std::int64_t kGap = 16;  // elements behind a head in the padded layout; twice that behind a token

struct Extent {
    std::int64_t row, head, size;  // strides and the whole, in elements
};
Extent extent(Layout layout, bool is_kv, std::int64_t rows, std::int64_t heads, std::int64_t dim) {
    if (layout == Layout::hnd && is_kv) return {dim, rows * dim, rows * heads * dim};
    const std::int64_t head = layout == Layout::padded ? dim + kGap : dim;
    const std::int64_t row = layout == Layout::padded ? heads * head + 2 * kGap : heads * head;
    return {row, head, rows * row};
}

}  // namespace

Scene::Scene(const DecodeCase& given) : which(given) {
    const DecodeProblem problem = which.problem();
    std::vector<Node> nodes;
    std::vector<std::int32_t> request_nodes(static_cast<std::size_t>(which.pathless), Forest::kNoNode);
    slot_end_ = 5;
    for (std::size_t n = 0; n < which.tree.size(); ++n) {
        const TreeNode& node = which.tree[n];
        nodes.push_back(new_node(node.parent, node.tokens));
        request_nodes.insert(request_nodes.end(), static_cast<std::size_t>(node.requests), static_cast<std::int32_t>(n));
    }
    // Rows in no order of the tree.
    const auto order = support::perm(kSeed, Stream::request_order, static_cast<std::int64_t>(request_nodes.size()));
    std::vector<std::int32_t> shuffled;
    for (const std::int32_t r : order) shuffled.push_back(request_nodes[static_cast<std::size_t>(r)]);
    forest = Forest::from_nodes(nodes, shuffled);
    for (const TestDraft& draft : which.drafts)
        forest.add_draft(draft.parent, new_node(draft.parent, draft.mask.columns()).kv_begin, draft.mask);

    const std::int64_t rows_of_q = forest.request_capacity() + kSpareRequests;
    for (std::int32_t r = 0; r < rows_of_q; ++r) query.push_back(r);
    std::int64_t rows = slot_end_ + 3 * (kSpareTokens + 1);  // and room for further nodes
    if (which.page_size > 0) {
        const std::int64_t table = rows / which.page_size + 1, pool = table + 3;
        pages = support::perm(kSeed, Stream::pages, pool);
        pages.resize(static_cast<std::size_t>(table));
        rows = pool * which.page_size;
    }
    const bool bytes = which.kv_dtype == KvDType::e4m3;
    const auto make = [&](auto& values, bool is_kv, std::int64_t count, std::int64_t heads, std::int64_t dim,
                          std::int64_t& row_stride, std::int64_t& head_stride) {
        const Extent all = extent(which.layout, is_kv, count, heads, dim);
        values.resize(static_cast<std::size_t>(all.size) * (is_kv && !bytes ? 2 : 1));
        row_stride = which.layout == Layout::nhd ? 0 : all.row;  // 0: packed is what the library assumes
        head_stride = which.layout == Layout::nhd ? 0 : all.head;
        return values.data();
    };
    tensors.q = make(q, false, rows_of_q, problem.q_heads, problem.head_dim, tensors.q_request_stride, tensors.q_head_stride);
    tensors.k = make(k, true, rows, problem.kv_heads, problem.head_dim, tensors.k_token_stride, tensors.k_head_stride);
    tensors.v = make(v, true, rows, problem.kv_heads, problem.head_dim_v, tensors.v_token_stride, tensors.v_head_stride);
    tensors.out =
        make(out, false, rows_of_q, problem.q_heads, problem.head_dim_v, tensors.out_request_stride, tensors.out_head_stride);
    if (which.lse) {
        lse.resize(static_cast<std::size_t>(rows_of_q * problem.q_heads));
        tensors.lse = lse.data();
    }
    if (which.page_size > 0) tensors.page_table = pages.data();
    std::fill(q.begin(), q.end(), support::kNan16);
    for (std::vector<std::uint8_t>* pool : {&k, &v}) {
        for (std::size_t i = 0; i < pool->size(); ++i)
            (*pool)[i] = bytes ? support::kNan8 : static_cast<std::uint8_t>(support::kNan16 >> i % 2 * 8);
    }
    for (std::int32_t h = 0; bytes && h < problem.kv_heads; ++h) {
        k_scale.push_back(0.75f + 0.5f * static_cast<float>(h));
        v_scale.push_back(1.5f / static_cast<float>(1 + h));
    }
    if (bytes) tensors.k_scale = k_scale.data(), tensors.v_scale = v_scale.data();
    fill();
    poison();
}

Node Scene::new_node(std::int32_t parent, std::int64_t tokens) {
    const Node node = {.parent = parent, .tokens = tokens, .kv_begin = slot_end_};
    slot_end_ += tokens + kSpareTokens;
    content.push_back(static_cast<std::int64_t>(content.size()) * kContentOfNode);
    return node;
}

void Scene::fill() {
    const DecodeProblem p = which.problem();
    const auto each = [&](const Extent& at, Stream stream, std::int64_t row, std::int64_t number, std::int64_t heads,
                          std::int64_t dim, const auto& put) {
        for (std::int64_t h = 0; h < heads; ++h) {
            for (std::int64_t d = 0; d < dim; ++d) {
                const auto index = static_cast<std::uint64_t>((number * heads + h) * dim + d);
                put(static_cast<std::size_t>(row * at.row + h * at.head + d), support::value(kSeed, stream, index));
            }
        }
    };
    const std::size_t size = kv_dtype_bytes(p.kv_dtype, p.dtype);
    const auto put = [&](std::vector<std::uint8_t>& to, Stream stream, std::int64_t row, std::int64_t number, std::int64_t dim) {
        // Exact for hnd, where alone it counts.
        const std::int64_t rows = static_cast<std::int64_t>(to.size() / size) / (p.kv_heads * dim);
        each(extent(which.layout, true, rows, p.kv_heads, dim), stream, row, number, p.kv_heads, dim,
             [&](std::size_t at, float value) {
                 if (size == 1) return static_cast<void>(to[at] = support::to_e4m3(value));
                 const std::uint16_t bits = support::round_to(p.dtype, value);
                 std::memcpy(&to[at * 2], &bits, 2);
             });
    };
    const Extent of_q = extent(which.layout, false, 1, p.q_heads, p.head_dim);
    for (std::size_t r = 0; r < query.size(); ++r)
        each(of_q, Stream::q, static_cast<std::int64_t>(r), query[r], p.q_heads, p.head_dim,
             [&](std::size_t at, float value) { q[at] = support::round_to(p.dtype, value); });
    for (std::int32_t n = 0; n < forest.node_capacity(); ++n) {
        if (!forest.node_alive(n)) continue;
        for (std::int64_t t = 0; t < forest.node(n).tokens; ++t) {
            const std::int64_t position = forest.node(n).kv_begin + t, number = content[static_cast<std::size_t>(n)] + t;
            const std::int64_t row =
                which.page_size == 0 ? position
                                     : pages[static_cast<std::size_t>(position / which.page_size)] * std::int64_t{which.page_size} +
                                           position % which.page_size;
            put(k, Stream::k, row, number, p.head_dim);
            put(v, Stream::v, row, number, p.head_dim_v);
        }
    }
}

void Scene::poison() {
    std::fill(out.begin(), out.end(), support::kNan16);
    std::fill(lse.begin(), lse.end(), std::numeric_limits<float>::quiet_NaN());
}

std::vector<double> Scene::row(std::int32_t request) const {
    const DecodeProblem p = which.problem();
    const Extent at = extent(which.layout, false, 1, p.q_heads, p.head_dim_v);
    std::vector<double> values;
    for (std::int64_t h = 0; h < p.q_heads; ++h) {
        for (std::int64_t d = 0; d < p.head_dim_v; ++d)
            values.push_back(support::widen(p.dtype, out[static_cast<std::size_t>(request * at.row + h * at.head + d)]));
    }
    return values;
}

bool Scene::same_lse(const Scene& other) const {
    return lse.size() == other.lse.size() &&
           (lse.empty() || std::memcmp(lse.data(), other.lse.data(), lse.size() * sizeof(float)) == 0);
}

std::string Scene::fault(const Forest& as_of) const {
    const DecodeProblem p = which.problem();
    const support::Comparison comparison = support::compare(p, tensors, oracle::decode(as_of, p, tensors));
    if (!comparison.passes(p.dtype)) return comparison.to_string();

    const Extent at = extent(which.layout, false, 1, p.q_heads, p.head_dim_v);
    std::int64_t written = 0, expected = 0;
    for (const std::uint16_t x : out) written += x != support::kNan16;
    for (std::int32_t r = 0; r < as_of.request_capacity(); ++r) {
        if (!as_of.request_alive(r)) continue;
        expected += p.q_heads * p.head_dim_v;
        if (as_of.path_tokens(r) > 0) continue;
        for (const double x : row(r)) {
            if (x != 0) return "request " + std::to_string(r) + " sees no key and has out " + std::to_string(x);
        }
        for (std::int64_t h = 0; h < p.q_heads && which.lse; ++h) {
            const float x = lse[static_cast<std::size_t>(r * p.q_heads + h)];
            if (x != -std::numeric_limits<float>::infinity())
                return "request " + std::to_string(r) + " sees no key and has lse " + std::to_string(x);
        }
    }
    if (written != expected) {
        return std::to_string(written) + " elements of out were written, " + std::to_string(expected) +
               " belong to requests (row stride " + std::to_string(at.row) + ")";
    }
    std::int64_t lse_written = 0;
    for (const float x : lse) lse_written += !std::isnan(x);
    if (which.lse && lse_written != expected / p.head_dim_v) return std::to_string(lse_written) + " values of lse were written";
    return {};
}

EngineOptions host_options(std::uint64_t schedule_seed) {
    return {.target = "host", .cache_dir = SAPWOOD_BINARY_DIR "/test-cache", .host_schedule_seed = schedule_seed};
}

Target host_target() {
    static Engine engine(host_options());
    return {&engine, nullptr};
}

Target gpu_target() {
    static Engine engine({.target = "cuda", .cache_dir = SAPWOOD_BINARY_DIR "/test-cache"});
    static const std::shared_ptr<cuda::Device> device = cuda::Device::open(0);
    return {&engine, device};
}

DecodePlan plan_of(const Target& target, const Scene& scene, const DecodeLimits& limits) {
    return target.engine->plan_decode(scene.which.problem(), scene.forest, scene.which.config, limits);
}

DecodePlanInfo run_once(const Target& target, Scene& scene) {
    DecodePlan plan = plan_of(target, scene);
    Bound(target, scene).run(plan);
    return plan.info();
}

Bound::Bound(const Target& target, Scene& scene) : target_(target), scene_(scene), tensors_(scene.tensors) {
    if (!target_.device) return;
    const auto allocate = [&](std::size_t bytes) {
        owned_.push_back(target_.device->allocate(std::max<std::size_t>(bytes, 16)));
        return reinterpret_cast<void*>(owned_.back());
    };
    tensors_.q = allocate(scene.q.size() * 2);
    tensors_.k = allocate(scene.k.size());
    tensors_.v = allocate(scene.v.size());
    const auto scales = [&](const float*& of, const std::vector<float>& from) {
        if (of == nullptr) return;
        void* copy = allocate(from.size() * 4);
        target_.device->copy_to_device(reinterpret_cast<std::uint64_t>(copy), from.data(), from.size() * 4, nullptr);
        of = static_cast<const float*>(copy);
    };
    scales(tensors_.k_scale, scene.k_scale);
    scales(tensors_.v_scale, scene.v_scale);
    tensors_.out = allocate(scene.out.size() * 2);
    if (scene.tensors.lse) tensors_.lse = static_cast<float*>(allocate(scene.lse.size() * 4));
    if (scene.tensors.page_table) {
        void* table = allocate(scene.pages.size() * 4);
        target_.device->copy_to_device(reinterpret_cast<std::uint64_t>(table), scene.pages.data(), scene.pages.size() * 4, nullptr);
        tensors_.page_table = static_cast<const std::int32_t*>(table);
    }
    refresh();
}

Bound::~Bound() {
    for (const std::uint64_t address : owned_) target_.device->free(address);
}

void Bound::refresh() {
    if (!target_.device) return;
    const auto copy = [&](const void* to, const auto& from) {
        target_.device->copy_to_device(reinterpret_cast<std::uint64_t>(to), from.data(), from.size() * sizeof(from[0]), nullptr);
    };
    copy(tensors_.q, scene_.q);
    copy(tensors_.k, scene_.k);
    copy(tensors_.v, scene_.v);
    target_.device->synchronize(nullptr);
}

void Bound::run(DecodePlan& plan) {
    run([&](const DecodeTensors& tensors) { target_.engine->launch(plan, tensors); });
}

void Bound::run(const std::function<void(const DecodeTensors&)>& call) {
    scene_.poison();
    if (!target_.device) return call(tensors_);
    const auto out = reinterpret_cast<std::uint64_t>(tensors_.out), lse = reinterpret_cast<std::uint64_t>(tensors_.lse);
    target_.device->copy_to_device(out, scene_.out.data(), scene_.out.size() * 2, nullptr);
    if (lse != 0) target_.device->copy_to_device(lse, scene_.lse.data(), scene_.lse.size() * 4, nullptr);
    target_.device->synchronize(nullptr);
    call(tensors_);
    target_.device->synchronize(nullptr);
    target_.device->copy_to_host(scene_.out.data(), out, scene_.out.size() * 2, nullptr);
    if (lse != 0) target_.device->copy_to_host(scene_.lse.data(), lse, scene_.lse.size() * 4, nullptr);
}

}  // namespace sapwood::test
