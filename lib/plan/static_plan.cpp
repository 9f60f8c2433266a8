// SPDX-License-Identifier: Apache-2.0
#include "plan/static_plan.h"

#include <algorithm>
#include <bit>
#include <limits>
#include <map>

#include "base/error.h"
#include "plan/node_chunks.h"
#include "plan/tile_words.h"
#include "plan/tiles.h"

namespace sapwood {
namespace {

constexpr std::int32_t kChunk = abi::kChunkTokens;
// From this many prefix keys on a block of rows is arithmetic, not loads.
constexpr std::int64_t kLongPrefix = 256;
// From this many on tiles of 128 keys win more in the prefix than they lose in the tree (FST's 1k nodes behind 8k: 1182 to 1074
// us).
constexpr std::int64_t kVeryLongPrefix = 4096;

std::string at(std::size_t sequence) { return "sequence " + std::to_string(sequence); }

void check(std::size_t index, const StaticTreeSequence& sequence, std::span<const StaticTree> trees) {
    const auto refuse = [&](const std::string& why) { raise(ErrorCode::kInvalidArgument, at(index) + " " + why); };
    if (sequence.tree < 0 || static_cast<std::size_t>(sequence.tree) >= trees.size())
        refuse("names tree " + std::to_string(sequence.tree) + "; there are " + std::to_string(trees.size()));
    constexpr std::int64_t kMost = std::numeric_limits<std::uint32_t>::max(), kMostRows = std::numeric_limits<std::int32_t>::max();
    const std::int64_t rows = trees[static_cast<std::size_t>(sequence.tree)].rows();
    if (sequence.prefix_tokens < 0 || sequence.prefix_begin < 0 || sequence.prefix_begin > kMost - sequence.prefix_tokens ||
        sequence.tree_begin < 0 || sequence.tree_begin > kMost - rows) {
        refuse("covers KV positions " + std::to_string(sequence.prefix_begin) + " + " + std::to_string(sequence.prefix_tokens) +
               " and " + std::to_string(sequence.tree_begin) + " + " + std::to_string(rows) + "; positions must lie in 0.." +
               std::to_string(kMost));
    }
    if (sequence.query_begin < 0 || sequence.query_begin > kMostRows - rows)
        refuse("has its first query in row " + std::to_string(sequence.query_begin));
}

/// One tree's blocks, which every sequence with this tree shares but for positions and rows.
struct Shape {
    struct Rows {
        NodeChunks ancestors;
        std::vector<std::uint8_t> self;  // of each row, whether it sees itself
    };
    std::int32_t capacity = 0;  // rows of a block, but for the last
    std::vector<Rows> blocks;
    std::vector<std::int32_t> order;  // of the blocks, in which a block follows soon on one that holds its rows' ancestors
    std::int64_t pairs = 0;           // (row, key of the tree)
};

/// Of 16 bits of a mask word each: chunks with a mask in the order in which they come, then a block's own rows.
std::int64_t columns_of(const Shape::Rows& block) { return block.ancestors.masked + 1; }

class Builder {
public:
    Builder(DecodePlan::Impl& plan, std::int64_t rows_of_q)
        : plan_(plan), list_(plan.list), input_(plan.split_input()), group_(input_.group) {
        list_.mask_rows = rows_of_q;
    }

    void add(const StaticTreeSequence& sequence, const Shape& shape, std::int32_t rows) {
        for (const std::int32_t index : shape.order) {
            const std::int32_t begin = index * shape.capacity;
            add_item(sequence, shape.blocks[static_cast<std::size_t>(index)], begin, std::min(begin + shape.capacity, rows));
        }
    }

private:
    void add_item(const StaticTreeSequence& sequence, const Shape::Rows& block, std::int32_t begin, std::int32_t end) {
        abi::Item item{};
        item.chunk_begin = static_cast<std::uint32_t>(list_.chunks.size());
        item.request_begin = static_cast<std::uint32_t>(list_.requests.size());
        item.requests = static_cast<std::uint16_t>(end - begin);
        item.in_a_row = 1;
        const std::int64_t first_row = sequence.query_begin + begin;
        for (std::int32_t row = begin; row < end; ++row)
            list_.requests.push_back({static_cast<std::int32_t>(sequence.query_begin + row), abi::kFinal});

        const std::int32_t rows = end - begin;
        units_ = RowUnits(input_.unit_rows, rows * group_);
        for (std::int64_t token = 0; token < sequence.prefix_tokens; token += kChunk)
            push(sequence.prefix_begin + token, std::min<std::int64_t>(kChunk, sequence.prefix_tokens - token), 0, rows, 0);
        list_nodes(sequence, block.ancestors);
        const auto self = static_cast<std::uint32_t>(block.ancestors.masked);
        for (std::int32_t row = 0; row < rows; row += kChunk) {
            const std::int32_t count = std::min(kChunk, rows - row);
            push(sequence.tree_begin + begin + row, count, row, row + count, masked(self));
        }
        for (std::int32_t row = 0; row < rows; ++row) {
            std::uint32_t* words = list_.masks.data() + (first_row + row) * list_.mask_words;
            const auto set = [&](std::uint32_t column, std::uint32_t bits) { words[column / 2] |= bits << (column % 2 * kChunk); };
            for (std::uint32_t column = 0; column < self; ++column)
                set(column, block.ancestors.bits[static_cast<std::size_t>(row) * self + column]);
            if (block.self[static_cast<std::size_t>(row)]) set(self, 1u << (row % kChunk));
        }

        const auto in_tile = static_cast<std::size_t>(plan_.config.block_kv / kChunk);
        const std::size_t chunks = list_.chunks.size() - item.chunk_begin;
        item.tiles = static_cast<std::uint32_t>((chunks + in_tile - 1) / in_tile);
        list_.chunks.resize(item.chunk_begin + item.tiles * in_tile);
        set_tile_words({list_.chunks.data() + item.chunk_begin, item.tiles * in_tile}, in_tile, input_, rows * group_);
        list_.items.push_back(item);
    }

    static std::uint32_t masked(std::uint32_t column) { return abi::kMasked | column << abi::kMaskColumnShift; }

    void push(std::int64_t position, std::int64_t tokens, std::int32_t begin, std::int32_t end, std::uint32_t flags) {
        list_.chunks.push_back({.position = static_cast<std::uint32_t>(position),
                                .row_begin = static_cast<std::uint16_t>(begin * group_),
                                .row_end = static_cast<std::uint16_t>(end * group_),
                                .tokens = static_cast<std::uint32_t>(tokens) | flags,
                                .tile_word = 0});
        list_.chunks.back().tile_word = units_.that_see(list_.chunks.back());
    }

    /// Nodes that are neighbours need no list.
    void list_nodes(const StaticTreeSequence& sequence, const NodeChunks& ancestors) {
        std::uint32_t column = 0;
        for (const NodeChunk& chunk : ancestors.chunks) {
            const auto nodes =
                std::span(ancestors.nodes).subspan(static_cast<std::size_t>(chunk.begin), static_cast<std::size_t>(chunk.count));
            const std::uint32_t flags = chunk.masked ? masked(column++) : 0;
            if (nodes.back() - nodes.front() + 1 == chunk.count) {
                push(sequence.tree_begin + nodes.front(), chunk.count, chunk.row_begin, chunk.row_end, flags);
                continue;
            }
            push(std::ssize(list_.gather), chunk.count, chunk.row_begin, chunk.row_end, flags | abi::kGathered);
            for (const std::int32_t node : nodes) list_.gather.push_back(static_cast<std::uint32_t>(sequence.tree_begin + node));
        }
    }

    DecodePlan::Impl& plan_;
    WorkList& list_;
    const SplitInput input_;
    const std::int32_t group_;
    RowUnits units_;  // of the item that is being written
};

/// The blocks depth first, a block's parent being the one that holds the last of its rows' ancestors before them: a third of the
/// keys that FST's trees read are ancestors, and in the order of rows L2 has lost them by then (a level of all heads is hundreds of
/// MB).
std::vector<std::int32_t> depth_first(const Shape& shape) {
    const std::vector<Shape::Rows>& blocks = shape.blocks;
    const std::int32_t count = static_cast<std::int32_t>(blocks.size());
    std::vector<std::int32_t> first_child(blocks.size() + 1, -1), next(blocks.size(), -1);  // the last place: of those without
    for (std::int32_t b = count - 1; b >= 0; --b) {
        const std::vector<std::int32_t>& nodes = blocks[static_cast<std::size_t>(b)].ancestors.nodes;
        const auto before = std::lower_bound(nodes.begin(), nodes.end(), b * shape.capacity);
        const std::int32_t parent = before == nodes.begin() ? count : before[-1] / shape.capacity;
        next[static_cast<std::size_t>(b)] = first_child[static_cast<std::size_t>(parent)];
        first_child[static_cast<std::size_t>(parent)] = b;
    }
    std::vector<std::int32_t> order, waiting = {first_child.back()};
    while (!waiting.empty()) {
        const std::int32_t b = waiting.back();
        waiting.pop_back();
        if (b < 0) continue;
        order.push_back(b);
        waiting.push_back(next[static_cast<std::size_t>(b)]);
        waiting.push_back(first_child[static_cast<std::size_t>(b)]);
    }
    return order;
}

Shape shape_of_tree(const StaticTree& tree, const DecodePlan::Impl& plan) {
    const SplitInput input = plan.split_input();
    Shape shape;
    shape.capacity = static_cast<std::int32_t>(abi::decode_block_q(shape_of(plan.problem, plan.config))) / input.group;
    StaticTree::Block block;
    for (std::int32_t begin = 0; begin < tree.rows(); begin += shape.capacity) {
        const std::int32_t rows = std::min(shape.capacity, tree.rows() - begin);
        tree.block(begin, begin + rows, block);
        shape.pairs += std::ssize(block.all) * rows + std::count(block.self.begin(), block.self.end(), 1);
        for (const std::uint32_t word : block.bits) shape.pairs += std::popcount(word);
        shape.blocks.push_back({node_chunks(block, rows, input.group, input.unit_rows), block.self});
    }
    shape.order = depth_first(shape);
    return shape;
}

/// Of `rows` query rows, all heads counted, behind `prefix` keys on average. A long prefix is arithmetic. Else items are short: two
/// blocks an SM, one of which loads while the other waits; the wide ones, whose rows share more ancestors, where the head dim and
/// the SM allow them and there are enough of them. FST's 16k nodes on an H100: 805 us with one wide block, 690 with two of four
/// warps, 575 with two wide ones.
DecodeConfig choose_config(const DecodeProblem& problem, const DecodeConfig& asked, std::int64_t rows, std::int64_t prefix,
                           const Limits& limits) {
    constexpr int kWide = 8, kSmall = 4, kBlocks = 2;
    std::vector<DecodeConfig> preferred;
    if (asked.mainloop == Mainloop::choose && prefix >= kLongPrefix) {
        DecodeConfig warpgroups = asked;
        warpgroups.mainloop = Mainloop::wgmma;
        if (asked.block_kv == 0 && prefix >= kVeryLongPrefix) {
            preferred.push_back(warpgroups);
            preferred.back().block_kv = 128;
        }
        preferred.push_back(warpgroups);
    }
    if (asked.mainloop != Mainloop::wgmma && asked.warps == 0 && asked.blocks == 0) {
        const bool many = rows / (kWide * 16) >= std::int64_t{2} * kBlocks * limits.sms;
        for (const int warps : {kWide, kSmall}) {
            if (warps == kWide && !many) continue;
            preferred.push_back(asked);
            preferred.back().warps = warps, preferred.back().blocks = kBlocks;
        }
    }
    for (const DecodeConfig& config : preferred)
        if (const auto found = find_config(problem, config, limits)) return *found;
    return sapwood::choose_config(problem, asked, limits);
}

}  // namespace

std::unique_ptr<DecodePlan::Impl> make_static_plan(const DecodeProblem& asked, std::span<const StaticTree> trees,
                                                   std::span<const StaticTreeSequence> sequences, const DecodeConfig& config,
                                                   const Limits& limits) {
    auto plan = std::make_unique<DecodePlan::Impl>();
    plan->problem = complete(asked);
    plan->problem.mask = true;
    plan->limits = limits;
    plan->fixed = true;
    std::int64_t rows = 0, prefix_pairs = 0, tokens = 0, requests = 0;
    for (std::size_t i = 0; i < sequences.size(); ++i) {
        check(i, sequences[i], trees);
        const std::int64_t count = trees[static_cast<std::size_t>(sequences[i].tree)].rows();
        rows = std::max(rows, sequences[i].query_begin + count);
        prefix_pairs += count * sequences[i].prefix_tokens;
        tokens += count + sequences[i].prefix_tokens;
        requests += count;
    }
    plan->config =
        choose_config(plan->problem, config, requests * plan->problem.q_heads, requests > 0 ? prefix_pairs / requests : 0, limits);

    std::map<std::int32_t, Shape> shapes;
    std::int64_t columns = 1, pairs = 0;
    for (const StaticTreeSequence& sequence : sequences) {
        const auto [shape, fresh] = shapes.try_emplace(sequence.tree);
        if (fresh) shape->second = shape_of_tree(trees[static_cast<std::size_t>(sequence.tree)], *plan);
        for (const Shape::Rows& block : shape->second.blocks) columns = std::max(columns, columns_of(block));
        pairs += shape->second.pairs;
    }
    WorkList& list = plan->list;
    list.mask_words = (columns + 1) / 2;
    list.masks.assign(static_cast<std::size_t>(rows * list.mask_words), 0);
    Builder builder(*plan, rows);
    for (const StaticTreeSequence& sequence : sequences)
        builder.add(sequence, shapes.at(sequence.tree), trees[static_cast<std::size_t>(sequence.tree)].rows());
    // Longest first, but those of like length stay in the order of their trees.
    std::stable_sort(list.items.begin(), list.items.end(),
                     [](const abi::Item& a, const abi::Item& b) { return std::bit_width(a.tiles) > std::bit_width(b.tiles); });

    plan->capacity = list.counts();
    const DecodeProblem& problem = plan->problem;
    const std::int64_t token_bytes = static_cast<std::int64_t>(kv_dtype_bytes(problem.kv_dtype, problem.dtype)) * problem.kv_heads *
                                     (problem.head_dim + problem.head_dim_v);
    DecodePlanInfo& info = plan->info;
    info.config = plan->config;
    info.requests = requests;
    info.items = std::ssize(list.items);
    info.hbm_bytes = tokens * token_bytes + 2 * requests * problem.q_heads * (problem.head_dim + problem.head_dim_v);
    for (const abi::Chunk& chunk : list.chunks) info.kv_load_bytes += (chunk.tokens & abi::kTokensMask) * token_bytes;
    info.flops = 2.0 * (problem.head_dim + problem.head_dim_v) * problem.q_heads * static_cast<double>(prefix_pairs + pairs);
    info.grid = plan->grid();
    plan->revision = 1;
    return plan;
}

}  // namespace sapwood
