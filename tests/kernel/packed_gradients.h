// SPDX-License-Identifier: Apache-2.0
// Gradients over packs for tests: inputs, a call on the host target or on a GPU, the oracle's judgement.
#pragma once

#include <string>
#include <vector>

#include "kernel/packed_cases.h"
#include "oracle/packed_oracle.h"

namespace sapwood::test {

/// A case of the forward tests, its output, and random gradients of both results.
struct Gradients {
    PackedScene scene;
    bool with_dlse;
    std::vector<std::uint16_t> dout, dq, dk, dv;
    std::vector<float> dlse;
    std::vector<double> dout_wide, dlse_wide;

    Gradients(const PackedCase& which, bool with_lse_gradient);

    /// Of the output that is there: see PackedScene::run.
    void run(const Target& target, const PackedBackwardOptions& options);
    void launch(const Target& target, PackedBackwardPlan& plan);

    oracle::PackedGradients wanted() const;
    /// What is wrong; empty: nothing.
    std::string fault(const oracle::PackedGradients& want) const;
};

/// Of one forward pass, by each of the ways that are asked.
void check_gradients(const Target& target, const PackedCase& which, const std::vector<PackedBackwardOptions>& ways, bool with_dlse);

/// What has a backward kernel by wgmma.
bool wgmma_has_backward(const PackedProblem& p);

}  // namespace sapwood::test
