// SPDX-License-Identifier: Apache-2.0
// Reads the decode, spec and fst workload files (tests/workloads/*.json) and builds what a case describes: forest, requests,
// drafts, page table.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "sapwood/decode.h"
#include "sapwood/forest.h"
#include "sapwood/static_tree.h"

namespace sapwood::support {

enum class Layout { random, contiguous };
const char* layout_name(Layout layout) noexcept;

/// One point of the product of a case's list fields.
struct Variant {
    DType dtype = DType::bf16;
    std::int32_t head_dim = 128;
    std::int32_t q_heads = 32, kv_heads = 8;
    std::int32_t page_size = 1;  // 0 is no page table; never in a file, see BuildOptions
    Layout layout = Layout::random;
    KvDType kv_dtype = KvDType::as_q;

    /// "bf16 d128 32/8 p16 random"
    std::string to_string() const;
};

struct TreeNode {
    std::int32_t parent = -1;
    std::int64_t tokens = 0;
    std::int32_t requests = 0;
};

/// A draft tree behind a node, its tokens in the slots after the node's.
struct DraftTree {
    std::int32_t node = 0;
    std::vector<std::int32_t> parents;
};

/// The integers that a file gives for comparison with what was built.
struct Check {
    std::optional<std::int64_t> nodes, requests, unique_tokens, used_tokens, path_tokens, empty_requests, max_depth;
    std::map<std::int32_t, std::int64_t> pages;  // by page size
};

/// One case of a file, the lists still open. Tests also make these by hand.
struct CaseSpec {
    std::string name, set, note;
    std::uint64_t seed = 1;
    std::vector<TreeNode> nodes;
    std::vector<DraftTree> drafts;  // at most one a node, in the order of their requests; then the nodes have none
    /// Of static trees: the one tree of all sequences, whose tokens are the last nodes of each sequence's; else empty.
    std::vector<std::int32_t> static_parents;
    bool random_requests = false;
    std::vector<DType> dtypes = {DType::bf16};
    std::vector<KvDType> kv_dtypes = {KvDType::as_q};
    std::vector<std::int32_t> head_dims = {128};
    std::vector<std::pair<std::int32_t, std::int32_t>> heads = {{32, 8}};  // q, kv
    std::vector<std::int32_t> page_sizes = {1};
    std::vector<Layout> layouts = {Layout::random};
    std::int32_t head_dim_v = 0;   // 0 = head_dim
    float scale = 0, softcap = 0;  // as in DecodeProblem
    bool mask = false;             // of a trace: the kernel had masks
    Check check;

    /// With K and V as the file has them first or, if `kv_dtype` is given, in that type, whether it is listed or not.
    std::vector<Variant> variants(std::optional<KvDType> kv_dtype = {}) const;
};

struct BuildOptions {
    bool runs_without_pages = false;  // build contiguous page_size-1 variants with page_size 0
    std::int32_t spare_tokens = 0;    // room behind every node, so that tests can append tokens
};

/// What the tree of a case comes to.
struct TreeCounts {
    std::int64_t requests = 0, unique_tokens = 0, used_tokens = 0, path_tokens = 0, empty_requests = 0, max_depth = 0;
};
TreeCounts count(const CaseSpec& spec);
std::int64_t count_pages(const CaseSpec& spec, std::int32_t page_size);

/// A case ready to plan. Position p is row page_table[p / page_size] * page_size + p % page_size, or row p without pages.
struct DecodeCase {
    std::string name;
    std::uint64_t seed = 1;
    Variant variant;
    std::int32_t head_dim_v = 0;  // 0 = variant.head_dim
    float scale = 0, softcap = 0;
    bool mask = false;
    Forest forest;
    TreeCounts counts;
    std::vector<std::int32_t> request_nodes;  // by request (row of Q); Forest::kNoNode never comes from a file
    std::vector<std::int64_t> token_begin;    // by node: its first logical token, the row that values are numbered by
    std::vector<std::int32_t> page_table;     // empty if page_size is 0
    std::int64_t rows = 0;                    // rows of the K and V tensors
    std::vector<StaticTree> static_trees;     // not empty: the forest's requests are these sequences' nodes
    std::vector<StaticTreeSequence> sequences;

    DecodeProblem problem() const;
    std::int64_t row_of(std::int64_t position) const;
    std::string title() const { return name + " " + variant.to_string(); }
    std::int64_t kv_bytes() const;  // of both tensors
};

/// A workload file, or (.jsonl) a recorded trace: each of its problems is a case T1, T2, …, of the target's set. Throws Error{kIo}
/// if the file cannot be read or is not a decode workload; the text names file, case and field.
std::vector<CaseSpec> load_workload(const std::filesystem::path& file);

/// Throws Error{kInternal} naming case, quantity, both numbers, if the tree differs from the file's check integers.
void verify(const CaseSpec& spec);

/// Builds one variant and verifies the integers, those of the built forest included.
DecodeCase build_case(const CaseSpec& spec, const Variant& variant, const BuildOptions& options = {});

/// `pattern`: an exact name if there is one, else a glob if it holds * ? [, else a prefix; empty = all.
std::vector<CaseSpec> select(std::vector<CaseSpec> specs, const std::string& pattern);

}  // namespace sapwood::support
