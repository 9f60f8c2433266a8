// SPDX-License-Identifier: Apache-2.0
// A job of `sapwood tune` built: its forest or its pack, candidates for it, and tensors on a GPU to measure them on.
#pragma once

#include <memory>

#include "gpu.h"
#include "kernel/key.h"
#include "tune.h"
#include "tune/database.h"
#include "tune/measure.h"

namespace sapwood::tool {

class TuneCase {
public:
    explicit TuneCase(const TuneJob& job);
    ~TuneCase();

    tune::CandidateSet candidates(const tune::DeviceFacts& device, const TuneOptions& options,
                                  std::span<const DecodeConfig> wanted) const;
    double bytes() const;  // of K and V; of a pack: of all its tensors
    /// Makes the tensors, with as many copies of K and V as keep the L2 cold. The engine and this must outlive the result.
    std::unique_ptr<tune::Measurer> measurer(Engine& engine, const DevicePtr& device, const TunePolicy& policy);

private:
    class Tensors;
    class DecodeTensorSets;
    class PackTensorSets;
    const TuneJob& job_;
    support::DecodeCase decode_;
    std::optional<Pack> pack_;
    std::unique_ptr<Tensors> tensors_;
};

KernelKey key_of(const TuneJob& job, const DecodeConfig& config, const std::string& target);
tune::Lookup look_up(const tune::Database& database, const TuneJob& job);

}  // namespace sapwood::tool
