// SPDX-License-Identifier: Apache-2.0
// Cases over packs as `run` and `bench` have them: chosen from a workload, with tensors, and judged by the fp64 oracle.
#pragma once

#include <string>
#include <vector>

#include "gpu.h"
#include "packed.h"
#include "support/half.h"
#include "support/packed_workload.h"

namespace sapwood::tool {

struct PackedItem {
    support::PackedSpec spec;
    support::PackedVariant variant;
    std::string title() const { return spec.name + " " + variant.to_string(); }
};
/// Whether a list with commas, of passes, has the name.
bool names(const std::string& list, const std::string& name);
/// Throws Stop if none fits the selection.
std::vector<PackedItem> packed_items(const Selection& cases);
nlohmann::json to_json(const PackedItem& item, const Pack& pack);
PackedConfig packed_config(const std::string& given);

/// Tensors of a case, in host memory.
struct PackedValues {
    support::HalfBuffer q, k, v, out;
    std::vector<float> lse;
    PackedTensors tensors;

    PackedValues(const Pack& pack, const support::PackedVariant& shape, std::uint64_t seed);
};

/// The same on a device; out and lse are poisoned.
class PackedOnDevice {
public:
    PackedOnDevice(const DevicePtr& device, PackedValues& values);
    void download() const;
    PackedTensors tensors;

private:
    PackedValues& values_;
    DeviceBuffer q_, k_, v_, out_, lse_;
};

/// What is planned for: the trees as segments or, with `arrays`, as sequences whose arrays go with each call.
Pack packed_trees(const PackedItem& item, bool arrays);
/// start_q and end_k of such a pack, on the device and among `there`'s tensors.
class PackedArraysOnDevice {
public:
    PackedArraysOnDevice(const DevicePtr& device, const PackedItem& item, PackedOnDevice& there);

private:
    DeviceBuffer start_, end_;
};

/// Of a forward pass.
struct PackedChecked {
    double out_error = 0, worst_row = 0, lse_error = 0;
    bool passes(DType dtype) const;
};
/// Evenly spread rows (0: 64), all heads.
PackedChecked check_packed(const PackedItem& item, const Pack& pack, const PackedValues& values, std::int32_t rows);

/// A backward call on a forward one's tensors; Q stands in for the gradient of the output.
PackedGradients packed_gradients(const PackedTensors& tensors, void* dq, void* dk, void* dv);

/// Gradients in host memory, and what they are of.
struct PackedGradientValues {
    support::HalfBuffer dq, dk, dv;
    const support::HalfBuffer& dout;
};
struct PackedGradientsChecked {
    double dq_error = 0, dk_error = 0, dv_error = 0;
    double worst() const;
    bool passes(DType dtype) const;
};
/// Evenly spread rows of dQ and keys of dK and dV (0: 64 of each), all heads; given the out and lse of `values`.
PackedGradientsChecked check_packed_gradients(const PackedItem& item, const Pack& pack, const PackedValues& values,
                                              const PackedGradientValues& gradients, std::int32_t rows);

}  // namespace sapwood::tool
