// SPDX-License-Identifier: Apache-2.0
#include "plan/decode_plan.h"

#include <algorithm>
#include <bit>

#include "base/error.h"
#include "plan/tiles.h"
#include "tree/forest_impl.h"

namespace sapwood {
namespace {

// A narrower cover is taken if it needs no more than this of the time.
constexpr double kWorthwhile = 0.98;

WorkCounts capacity_for(const WorkCounts& needed, const DecodeLimits& asked, const SplitInput& input) {
    const auto room = [](std::int64_t asked_for, std::int64_t now, std::int64_t least) {
        return asked_for > 0 ? std::max(asked_for, now) : std::max(2 * now, least);
    };
    const std::int64_t in_tile = input.block_kv / static_cast<std::int64_t>(abi::kChunkTokens);
    WorkCounts capacity;
    capacity.items = room(asked.max_items, needed.items, 256);
    capacity.chunks = room(asked.max_tiles * in_tile, needed.chunks, 1024);
    // Every request may come to have a part in several items.
    capacity.requests = room(asked.max_requests * 4, needed.requests, 256);
    capacity.merges = room(asked.max_requests, needed.merges, 64);
    capacity.slots = room(asked.max_requests * 4, needed.slots, 256);
    capacity.mask_words = needed.mask_words;
    if (needed.mask_words > 0) capacity.mask_rows = room(asked.max_requests, needed.mask_rows, 64);
    return capacity;
}

void check_capacity(const WorkCounts& needed, const WorkCounts& capacity) {
    const auto check = [](const char* what, std::int64_t need, std::int64_t have) {
        if (need > have) {
            raise(ErrorCode::kCapacityExceeded, "the updated forest needs " + std::to_string(need) + " " + what +
                                                    "; the plan holds " + std::to_string(have) +
                                                    ". Plan again with larger DecodeLimits (and capture again)");
        }
    };
    check("work items", needed.items, capacity.items);
    check("request entries", needed.requests, capacity.requests);
    check("chunks", needed.chunks, capacity.chunks);
    check("merges", needed.merges, capacity.merges);
    check("partial slots", needed.slots, capacity.slots);
    check("words a mask row", needed.mask_words, capacity.mask_words);
    check("mask rows", needed.mask_rows, capacity.mask_rows);
}

DecodePlanInfo describe(const DecodePlan::Impl& plan, const ForestOrder& order, const Cover& cover, const CostModel& model,
                        const Split& split) {
    const DecodeProblem& problem = plan.problem;
    const double row = static_cast<double>(dtype_bytes(problem.dtype)) * problem.q_heads * (problem.head_dim + problem.head_dim_v);
    DecodePlanInfo info;
    info.config = plan.config;
    info.requests = static_cast<std::int64_t>(order.requests.size() + order.empty.size());
    info.items = static_cast<std::int64_t>(plan.list.items.size());
    info.partial_rows = plan.list.slots;
    info.kv_load_bytes =
        static_cast<std::int64_t>(static_cast<double>(plan.list.loaded_tokens) * model.token_bytes * problem.kv_heads);
    info.hbm_bytes = static_cast<std::int64_t>(static_cast<double>(order.used_tokens) * model.token_bytes * problem.kv_heads +
                                               static_cast<double>(info.requests) * row);
    info.partial_bytes = plan.list.slots * problem.q_heads * (problem.head_dim_v * 2 + 4) * 2;
    info.flops = 2.0 * (problem.head_dim + problem.head_dim_v) * problem.q_heads * static_cast<double>(order.path_tokens);
    info.model_cost = cover.cost;
    info.model_us = split.makespan;
    info.grid = plan.grid();
    return info;
}

SplitInput split_input_of(const DecodeProblem& problem, const DecodeConfig& config, const Limits& limits) {
    return {.kv_heads = problem.kv_heads,
            .group = group_of(problem),
            .resident_blocks = limits.sms * config.blocks,
            .sms = limits.sms,
            .block_kv = config.block_kv,
            .unit_rows = config.mainloop == Mainloop::wgmma ? 64 : 16,
            .units = config.mainloop == Mainloop::wgmma ? config.warps / 4 : config.warps,
            .share_rows = !abi::decode_query_shared(shape_of(problem, config)),
            .ring_keys = config.stages * config.block_kv,
            .aimed = config.split};
}

}  // namespace

SplitInput DecodePlan::Impl::split_input() const { return split_input_of(problem, config, limits); }

void DecodePlan::Impl::plan(const Forest& forest, const ForestOrder& order, const DecodeLimits* asked) {
    // Wide blocks re-read shared KV least; narrower ones may spread the work more evenly without partial results. The covers for a
    // few widths are compared by the time that the split model gives them.
    CostModel model = cost_model(problem, config);
    if (config.rows > 0) model.capacity = std::clamp(config.rows / group_of(problem), 1, model.capacity);
    Cover cover = make_cover(order, model);
    Split split = choose_split(order, cover, model, split_input());
    // A cover that comes within a tenth of its even share leaves a narrower one, which loads more, little to win.
    const bool uneven = config.rows == 0 && split.makespan > 1.1 * split.even_share;
    for (CostModel narrow = model; uneven && narrow.capacity > 1 && order.requests.size() > 1;) {
        narrow.capacity = (narrow.capacity + 1) / 2;
        // What loads more than fits the time already found is beaten however evenly it is spread, and narrower covers load more.
        const double enough = kWorthwhile * split.makespan;
        if (least_share(order, narrow, split_input()) >= enough) break;
        Cover other = make_cover(order, narrow);
        Split its = choose_split(order, other, narrow, split_input());
        if (its.even_share > split.makespan) break;
        if (its.makespan < enough) {
            model = narrow;
            cover = std::move(other);
            split = std::move(its);
        }
        if (narrow.capacity * group_of(problem) <= split_input().unit_rows) break;
    }
    WorkList fresh;
    fresh.build(order, cover, model, split_input(), split, static_cast<std::size_t>(forest.node_capacity()));
    if (problem.mask) {
        // The width of a mask row is an argument that a captured graph keeps.
        const std::int64_t now = (order.mask_columns + 31) / 32;
        const auto least = static_cast<std::int64_t>(std::bit_ceil(static_cast<std::uint64_t>(std::max<std::int64_t>(now, 2))));
        const std::int64_t room = asked == nullptr              ? capacity.mask_words
                                  : asked->max_draft_tokens > 0 ? (asked->max_draft_tokens + 31) / 32
                                                                : least;
        fresh.build_masks(order, std::max(now, room), static_cast<std::size_t>(forest.request_capacity()));
    } else if (order.mask_columns > 0) {
        raise(ErrorCode::kCapacityExceeded,
              "the forest has come to have a draft with a mask; plan with DecodeProblem::mask set for a kernel that can attend it");
    }
    if (asked != nullptr) {
        capacity = capacity_for(fresh.counts(), *asked, split_input());
    } else {
        check_capacity(fresh.counts(), capacity);
    }
    // Nothing below throws: the plan changes as a whole or not at all.
    list = std::move(fresh);
    masks_on_device = order.masks_on_device;
    mask_columns = order.mask_columns;
    info = describe(*this, order, cover, model, split);
    const Forest::Impl& source = forest.impl();
    forest_identity = source.identity;
    forest_structure = source.structure;
    journal = source.grown.size();
    grown_tokens = 0;
    ++revision;
}

DecodeProblem complete(const DecodeProblem& asked, const ForestOrder& order) {
    DecodeProblem problem = complete(asked);
    problem.mask = problem.mask || order.mask_columns > 0;
    return problem;
}

DecodeConfig choose_config(const DecodeProblem& problem, const ForestOrder& order, const DecodeConfig& asked,
                           const Limits& limits) {
    const auto load = [&](const DecodeConfig& config) {
        return row_load(order, cost_model(problem, config), split_input_of(problem, config, limits));
    };
    const DecodeConfig config = choose_config(problem, asked, limits);
    if (asked.mainloop != Mainloop::choose || !load(config).heavy(problem.mask, problem.kv_dtype != KvDType::as_q)) return config;
    DecodeConfig wanted = asked;
    wanted.mainloop = Mainloop::wgmma;
    const auto warpgroups = find_config(problem, wanted, limits);
    if (!warpgroups) return config;
    // Where rows see parts of a tile, or its tokens are scattered, longer tiles lose more than they win (FT7 16/1: 19 to 29 us).
    const bool whole_tiles = problem.mask && problem.page_size != 1;
    if (asked.block_kv != 0 || !whole_tiles || !load(*warpgroups).very_heavy()) return *warpgroups;
    wanted.block_kv = 128;
    return find_config(problem, wanted, limits).value_or(*warpgroups);
}

std::unique_ptr<DecodePlan::Impl> make_decode_plan(const DecodeProblem& asked_problem, const Forest& forest,
                                                   const DecodeConfig& config, const DecodeLimits& asked, const Limits& limits) {
    const ForestOrder order = order_of(forest);
    const DecodeProblem problem = complete(asked_problem, order);
    return make_decode_plan(problem, forest, order, choose_config(problem, order, config, limits), asked, limits);
}

std::unique_ptr<DecodePlan::Impl> make_decode_plan(const DecodeProblem& problem, const Forest& forest, const ForestOrder& order,
                                                   const DecodeConfig& config, const DecodeLimits& asked, const Limits& limits) {
    auto plan = std::make_unique<DecodePlan::Impl>();
    plan->problem = problem;
    plan->limits = limits;
    plan->config = config;
    plan->plan(forest, order, &asked);
    return plan;
}

DecodePlan::DecodePlan(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
DecodePlan::DecodePlan(DecodePlan&&) noexcept = default;
DecodePlan& DecodePlan::operator=(DecodePlan&&) noexcept = default;
DecodePlan::~DecodePlan() = default;

void DecodePlan::update(const Forest& forest) {
    if (impl_->hook != nullptr) {
        impl_->hook->update(*impl_, forest);
    } else {
        impl_->update(forest);
    }
}

void DecodePlan::Impl::update(const Forest& forest) {
    Impl& plan = *this;
    if (fixed) {
        raise(ErrorCode::kInvalidArgument, "a plan of static trees has no forest to take over; plan the new tree");
    }
    const Forest::Impl& source = forest.impl();
    if (source.identity != plan.forest_identity || source.structure != plan.forest_structure ||
        plan.journal > source.grown.size()) {
        plan.plan(forest, order_of(forest), nullptr);
        return;
    }
    const std::size_t seen = plan.journal;
    for (; plan.journal < source.grown.size(); ++plan.journal) {
        if (!plan.list.grow(source.grown[plan.journal], source.grown_by[plan.journal])) {
            // Only lengths have changed since the plan was made, but one outgrew its last chunk. Take the patches of this call
            // back: if the new plan does not fit, this one must be as it was.
            while (plan.journal > seen) {
                --plan.journal;
                plan.list.grow(source.grown[plan.journal], -source.grown_by[plan.journal]);
                plan.grown_tokens -= source.grown_by[plan.journal];
            }
            plan.plan(forest, order_of(forest), nullptr);
            return;
        }
        plan.grown_tokens += source.grown_by[plan.journal];
    }
}

const DecodeProblem& DecodePlan::problem() const noexcept { return impl_->problem; }

DecodePlanInfo DecodePlan::info() const {
    DecodePlanInfo info = impl_->info;
    info.tuned = impl_->tuned;
    // Patched lengths: the totals that follow from them alone.
    const double bytes =
        static_cast<double>(impl_->grown_tokens) * impl_->problem.kv_heads * cost_model(impl_->problem, impl_->config).token_bytes;
    info.hbm_bytes += static_cast<std::int64_t>(bytes);
    info.kv_load_bytes += static_cast<std::int64_t>(bytes);
    return info;
}

std::string DecodePlan::kernel_key() const { return impl_->key; }

std::string DecodePlan::to_string(int max_items) const {
    const DecodePlanInfo i = info();
    const WorkList& list = impl_->list;
    const auto megabytes = [](std::int64_t bytes) {
        const std::string tenths = std::to_string((bytes + 50'000) / 100'000);
        return (tenths.size() > 1 ? tenths.substr(0, tenths.size() - 1) : "0") + "." + tenths.substr(tenths.size() - 1) + " MB";
    };
    std::string text = std::to_string(i.requests) + " requests, " + std::to_string(i.items) + " work items x " +
                       std::to_string(impl_->problem.kv_heads) + " KV heads on " + std::to_string(i.grid) + " blocks, config " +
                       i.config.to_string() + ", model " + std::to_string(i.model_us).substr(0, 6) + " us\n  " +
                       megabytes(i.hbm_bytes) + " at least, KV loads " + megabytes(i.kv_load_bytes) + ", partial results " +
                       megabytes(i.partial_bytes) + " (" + std::to_string(i.partial_rows) + " slots)";
    for (std::size_t n = 0; n < list.items.size() && static_cast<int>(n) < max_items; ++n) {
        const abi::Item& item = list.items[n];
        text += "\n  item " + std::to_string(n) + ": " + std::to_string(item.requests) + " requests, " +
                std::to_string(item.tiles) + " tiles";
    }
    if (static_cast<int>(list.items.size()) > max_items) text += "\n  …";
    return text;
}

}  // namespace sapwood
