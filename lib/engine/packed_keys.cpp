// SPDX-License-Identifier: Apache-2.0
// The kernels that calls over packs need: of the sizes of packs, without packs.
#include <algorithm>

#include "base/error.h"
#include "engine/engine_config.h"
#include "engine/engine_impl.h"
#include "engine/tuning.h"
#include "kernel/key_text.h"
#include "plan/packed_tiles.h"

namespace sapwood {
namespace {

std::string text_of(const PackedProblem& p, bool backward) {
    return std::string("pack, ") + (backward ? "backward" : "forward") + ", " + dtype_name(p.dtype) + " " +
           std::to_string(p.q_heads) + "/" + std::to_string(p.kv_heads) + " heads of " + std::to_string(p.head_dim);
}

class Finder {
public:
    explicit Finder(Engine& engine) : engine_(engine), service_(*engine.impl().service) {}

    /// What is chosen for packs of these sizes.
    void forward(const PackedProblem& problem, const tune::Sizes& sizes) {
        guarded(problem, false, [&] {
            const PackedProblem whole = complete(problem);
            const PackedConfig config = choose_config(whole, tuned(Family::packed_forward, whole, sizes), service_.setup.limits);
            found_.keys.push_back(packed_key(Family::packed_forward, whole, config, service_.setup.target).to_string());
            ++found_.plans;
        });
    }

    /// Beyond its tiles, what a backward pass runs does not depend on the pack.
    void backward(const PackedProblem& problem, const tune::Sizes& sizes, bool deterministic = false) {
        guarded(problem, true, [&] {
            const Segment token = {.parent = -1, .tokens = 1};
            PackedBackwardOptions options = {.deterministic = deterministic,
                                             .config = tuned(Family::packed_backward, complete(problem), sizes)};
            options.config.heads = 0;
            const auto keys = engine_.plan_packed_backward(problem, Pack::from_segments({&token, 1}), options).kernel_keys();
            found_.keys.insert(found_.keys.end(), keys.begin(), keys.end());
            ++found_.plans;
        });
    }

    void recorded(const TracedPack& record) {
        guarded(record.problem, record.backward, [&] {
            for (const std::string& key : record.keys) found_.keys.push_back(parse_key(key).to_string());
        });
    }

    KeyList found() {
        found_.sort_out();
        return std::move(found_);
    }

private:
    PackedConfig tuned(Family pass, const PackedProblem& problem, const tune::Sizes& sizes) {
        TuneMatch match = TuneMatch::none;
        return service_.tuning->choose({pass, problem}, sizes, {}, match);
    }
    template <class Body>
    void guarded(const PackedProblem& problem, bool backward, const Body& body) {
        try {
            body();
        } catch (const Error& error) {
            const std::string fault = text_of(problem, backward) + ": " + error.what();
            if (std::find(found_.faults.begin(), found_.faults.end(), fault) == found_.faults.end()) found_.faults.push_back(fault);
        }
    }

    Engine& engine_;
    KernelService& service_;
    KeyList found_;
};

}  // namespace

KeyList packed_keys_of(Engine& engine, const EngineConfig& config) {
    Finder finder(engine);
    for (const PackedProblem& problem : config.packed_problems) {
        for (const std::int64_t tokens : config.packs.tokens) {
            for (const std::int64_t segment : config.packs.segments) {
                const std::int64_t count = tokens / segment, whole = count * segment;
                if (count == 0) continue;
                const tune::Sizes sizes = tune::sizes_of(problem, whole, whole, whole * (segment + 1) / 2, count);
                if (config.packs.backward) finder.backward(problem, sizes);
                if (config.packs.forward) finder.forward(problem, sizes);
            }
        }
    }
    return finder.found();
}

KeyList keys_of(Engine& engine, std::span<const TracedPack> trace) {
    Finder finder(engine);
    for (const TracedPack& record : trace) {
        const tune::Sizes sizes = tune::sizes_of(record.problem, record.rows, record.tokens, record.visible_pairs, record.runs);
        if (record.backward) {
            finder.backward(record.problem, sizes, record.deterministic);
        } else {
            finder.forward(record.problem, sizes);
        }
        if (record.target == engine.target()) finder.recorded(record);
    }
    return finder.found();
}

}  // namespace sapwood
