// SPDX-License-Identifier: Apache-2.0
#include "plan/static_plan.h"

#include <algorithm>
#include <bit>
#include <limits>
#include <map>

#include "base/error.h"
#include "plan/tiles.h"

namespace sapwood {
namespace {

constexpr std::int32_t kChunk = abi::kChunkTokens;
// From this many prefix keys on a block of rows is arithmetic, not loads.
constexpr std::int64_t kLongPrefix = 256;

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
    std::vector<StaticTree::Block> blocks;
    std::int64_t pairs = 0;  // (row, key of the tree)
};

/// Chunks that list nodes one by one have columns of mask words in the order in which they come; a block's own rows come last.
std::int64_t columns_of(const StaticTree::Block& block) { return (std::ssize(block.some) + kChunk - 1) / kChunk + 1; }

class Builder {
public:
    Builder(DecodePlan::Impl& plan, std::int64_t rows_of_q) : plan_(plan), list_(plan.list), group_(group_of(plan.problem)) {
        list_.mask_rows = rows_of_q;
    }

    void add(const StaticTreeSequence& sequence, const Shape& shape, std::int32_t rows) {
        const std::int32_t capacity =
            static_cast<std::int32_t>(abi::decode_block_q(shape_of(plan_.problem, plan_.config))) / group_;
        std::int32_t begin = 0;
        for (const StaticTree::Block& block : shape.blocks) {
            const std::int32_t end = std::min(begin + capacity, rows);
            add_item(sequence, block, begin, end);
            begin = end;
        }
    }

private:
    void add_item(const StaticTreeSequence& sequence, const StaticTree::Block& block, std::int32_t begin, std::int32_t end) {
        abi::Item item{};
        item.chunk_begin = static_cast<std::uint32_t>(list_.chunks.size());
        item.request_begin = static_cast<std::uint32_t>(list_.requests.size());
        item.requests = static_cast<std::uint16_t>(end - begin);
        item.in_a_row = 1;
        const std::int64_t first_row = sequence.query_begin + begin;
        for (std::int32_t row = begin; row < end; ++row)
            list_.requests.push_back({static_cast<std::int32_t>(sequence.query_begin + row), abi::kFinal});

        const std::int32_t rows = end - begin;
        for (std::int64_t token = 0; token < sequence.prefix_tokens; token += kChunk)
            push(sequence.prefix_begin + token, std::min<std::int64_t>(kChunk, sequence.prefix_tokens - token), 0, rows, 0);
        list_nodes(sequence, block.all, rows, false);
        list_nodes(sequence, block.some, rows, true);
        std::uint32_t column = static_cast<std::uint32_t>(columns_of(block) - 1);
        for (std::int32_t row = 0; row < rows; row += kChunk) {
            const std::int32_t count = std::min(kChunk, rows - row);
            push(sequence.tree_begin + begin + row, count, row, row + count, masked(column));
        }
        for (std::int32_t row = 0; row < rows; ++row) {
            std::uint32_t* words = list_.masks.data() + (first_row + row) * list_.mask_words;
            std::copy_n(block.bits.begin() + std::ptrdiff_t{row} * block.words, block.words, words);
            if (block.self[static_cast<std::size_t>(row)]) words[column / 2] |= 1u << (column % 2 * kChunk + row % kChunk);
        }

        const auto in_tile = static_cast<std::size_t>(plan_.config.block_kv / kChunk);
        const std::size_t chunks = list_.chunks.size() - item.chunk_begin;
        item.tiles = static_cast<std::uint32_t>((chunks + in_tile - 1) / in_tile);
        list_.chunks.resize(item.chunk_begin + item.tiles * in_tile);
        for (std::uint32_t t = 0; t < item.tiles; ++t) summarise({list_.chunks.data() + item.chunk_begin + t * in_tile, in_tile});
        list_.items.push_back(item);
    }

    static std::uint32_t masked(std::uint32_t column) { return abi::kMasked | column << abi::kMaskColumnShift; }

    void push(std::int64_t position, std::int64_t tokens, std::int32_t begin, std::int32_t end, std::uint32_t flags) {
        list_.chunks.push_back({.position = static_cast<std::uint32_t>(position),
                                .row_begin = static_cast<std::uint16_t>(begin * group_),
                                .row_end = static_cast<std::uint16_t>(end * group_),
                                .tokens = static_cast<std::uint32_t>(tokens) | flags,
                                .tile_rows = 0});
    }

    /// Sixteen nodes at a time; those that are neighbours need no list.
    void list_nodes(const StaticTreeSequence& sequence, std::span<const std::int32_t> nodes, std::int32_t rows, bool some) {
        for (std::size_t i = 0; i < nodes.size(); i += kChunk) {
            const std::span<const std::int32_t> part = nodes.subspan(i, std::min<std::size_t>(kChunk, nodes.size() - i));
            const std::uint32_t flags = some ? masked(static_cast<std::uint32_t>(i / kChunk)) : 0;
            if (part.back() - part.front() + 1 == std::ssize(part)) {
                push(sequence.tree_begin + part.front(), std::ssize(part), 0, rows, flags);
                continue;
            }
            push(std::ssize(list_.gather), std::ssize(part), 0, rows, flags | abi::kGathered);
            for (const std::int32_t node : part) list_.gather.push_back(static_cast<std::uint32_t>(sequence.tree_begin + node));
        }
    }

    DecodePlan::Impl& plan_;
    WorkList& list_;
    const std::int32_t group_;
};

Shape shape_of_tree(const StaticTree& tree, std::int32_t capacity) {
    Shape shape;
    for (std::int32_t begin = 0; begin < tree.rows(); begin += capacity) {
        const std::int32_t end = std::min(begin + capacity, tree.rows());
        tree.block(begin, end, shape.blocks.emplace_back());
        const StaticTree::Block& block = shape.blocks.back();
        shape.pairs += std::ssize(block.all) * (end - begin) + std::count(block.self.begin(), block.self.end(), 1);
        for (const std::uint32_t word : block.bits) shape.pairs += std::popcount(word);
    }
    return shape;
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
    DecodeConfig wanted = config;
    if (wanted.mainloop == Mainloop::choose && prefix_pairs >= kLongPrefix * requests) wanted.mainloop = Mainloop::wgmma;
    // Short items: two blocks an SM, one of which loads while the other waits (735 against 805 us for FST's 16k nodes on an H100).
    DecodeConfig two = wanted;
    if (two.mainloop != Mainloop::wgmma && two.warps == 0 && two.blocks == 0) two.warps = 4, two.blocks = 2;
    auto found = find_config(plan->problem, two, limits);
    if (!found) found = find_config(plan->problem, wanted, limits);
    plan->config = found ? *found : choose_config(plan->problem, config, limits);

    const int group = group_of(plan->problem);
    const auto capacity = static_cast<std::int32_t>(abi::decode_block_q(shape_of(plan->problem, plan->config))) / group;
    std::map<std::int32_t, Shape> shapes;
    std::int64_t columns = 1, pairs = 0;
    for (const StaticTreeSequence& sequence : sequences) {
        const auto [shape, fresh] = shapes.try_emplace(sequence.tree);
        if (fresh) shape->second = shape_of_tree(trees[static_cast<std::size_t>(sequence.tree)], capacity);
        for (const StaticTree::Block& block : shape->second.blocks) columns = std::max(columns, columns_of(block));
        pairs += shape->second.pairs;
    }
    WorkList& list = plan->list;
    list.mask_words = (columns + 1) / 2;
    list.masks.assign(static_cast<std::size_t>(rows * list.mask_words), 0);
    Builder builder(*plan, rows);
    for (const StaticTreeSequence& sequence : sequences)
        builder.add(sequence, shapes.at(sequence.tree), trees[static_cast<std::size_t>(sequence.tree)].rows());
    std::stable_sort(list.items.begin(), list.items.end(),
                     [](const abi::Item& a, const abi::Item& b) { return a.tiles > b.tiles; });

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
