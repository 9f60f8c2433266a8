// SPDX-License-Identifier: Apache-2.0
// Decode problems small enough for the host target, and the memory, targets and checks that every test of the decode kernel shares.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "cuda/device.h"
#include "sapwood/sapwood.h"

namespace sapwood::test {

struct TreeNode {
    std::int32_t parent = -1;
    std::int64_t tokens = 0;
    std::int32_t requests = 0;
};
using Tree = std::vector<TreeNode>;

/// A draft behind a node of the tree, or behind nothing.
struct TestDraft {
    std::int32_t parent = -1;
    DraftMask mask;
};

/// Two roots, requests on inner nodes, several on one, empty nodes inside and at the end, an empty root, a node that nobody sees,
/// and no length but one that is a multiple of 16.
Tree two_roots();
/// A root and one of its two children hold more requests than a block has rows for.
Tree crowded(std::int32_t requests);
/// A chain of five nodes with a request and a short sibling at every level.
Tree chain();
/// One request.
Tree lone(std::int64_t tokens);

/// Where K, V, Q and out keep rows and heads. hnd: K and V as [heads, rows, dim]. padded: gaps behind every head and every token.
enum class Layout { nhd, hnd, padded };

struct DecodeCase {
    const char* name = "";
    DType dtype = DType::bf16;
    std::int32_t head_dim = 128, head_dim_v = 0, group = 4, kv_heads = 2, page_size = 0;
    Tree tree;
    DecodeConfig config;
    Layout layout = Layout::nhd;
    float scale = 0, softcap = 0;
    bool lse = true;
    std::int32_t pathless = 1;      // requests on no node at all
    std::vector<TestDraft> drafts;  // their requests come after the tree's
    KvDType kv_dtype = KvDType::as_q;

    DecodeProblem problem() const;
    std::string to_string() const;
};
const std::vector<DecodeCase>& decode_cases();

/// Host memory of a case. Nodes begin at odd positions, with free slots behind each; pages are in random order, and some of the
/// pool are in no table. Slots that no token owns are NaN.
class Scene {
public:
    explicit Scene(const DecodeCase& which);

    DecodeCase which;
    Forest forest;
    DecodeTensors tensors;
    std::vector<std::uint16_t> q, out;
    std::vector<std::uint8_t> k, v;       // bytes: elements of one or two
    std::vector<float> k_scale, v_scale;  // of e4m3 K and V; else empty
    std::vector<float> lse;
    std::vector<std::int32_t> pages;
    /// Numbers that the values of a node's tokens and of a request's query follow from. Change them, then fill(), to give other ids
    /// the same content.
    std::vector<std::int64_t> content;
    std::vector<std::int32_t> query;

    static constexpr std::int32_t kSpareTokens = 43, kSpareRequests = 4;
    static constexpr std::int64_t kContentOfNode = 1 << 16;

    /// Free slots for another node, which the caller adds to the forest.
    Node new_node(std::int32_t parent, std::int64_t tokens);
    /// Values of Q, and of K and V for every token that a live node owns now.
    void fill();
    void poison();  // out and lse
    /// What is wrong with out and lse, judged by the fp64 oracle; empty: nothing. Rows and gaps that are nobody's must be
    /// untouched.
    std::string fault() const { return fault(forest); }
    std::string fault(const Forest& as_of) const;
    std::vector<double> row(std::int32_t request) const;  // of out
    bool same_bits(const Scene& other) const { return out == other.out && same_lse(other); }

private:
    bool same_lse(const Scene& other) const;
    std::int64_t slot_end_ = 0;
};

struct Target {
    Engine* engine = nullptr;
    std::shared_ptr<cuda::Device> device;  // null: the host target
};
Target host_target();
Target gpu_target();  // ask gpu_available() first
/// Options for further engines on the tests' own cache.
EngineOptions host_options(std::uint64_t schedule_seed = 0);

/// A scene on a target: the scene's own memory or a copy on the device.
class Bound {
public:
    Bound(const Target& target, Scene& scene);
    ~Bound();
    Bound(const Bound&) = delete;
    Bound& operator=(const Bound&) = delete;

    /// Takes over the scene's Q, K and V into the memory there is.
    void refresh();
    /// Poisons out and lse, calls, and brings the result into the scene.
    void run(DecodePlan& plan);
    void run(const std::function<void(const DecodeTensors&)>& call);
    const DecodeTensors& tensors() const { return tensors_; }

private:
    Target target_;
    Scene& scene_;
    DecodeTensors tensors_;
    std::vector<std::uint64_t> owned_;
};

DecodePlan plan_of(const Target& target, const Scene& scene, const DecodeLimits& limits = {});
/// One planned, launched and fetched call.
DecodePlanInfo run_once(const Target& target, Scene& scene);
/// What the tests of properties begin with.
inline DecodeCase small_case(DType dtype = DType::bf16) { return {"property", dtype, 128, 0, 4, 2, 16, two_roots()}; }

}  // namespace sapwood::test

/// The same test on both targets: body(target).
#define SAPWOOD_ON_BOTH(name, body)                                \
    TEST_CASE("decode on host: " name) { body(host_target()); }    \
    TEST_CASE("decode on gpu: " name) {                            \
        if (sapwood::support::gpu_available()) body(gpu_target()); \
    }
