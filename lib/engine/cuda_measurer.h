// SPDX-License-Identifier: Apache-2.0
// Times configurations of one problem on a GPU as TunePolicy says: CUDA graphs, cold L2 by argument sets that take turns. What a
// problem is (a decode step over a forest, a pass over a pack) is its subject's affair.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "cuda/device.h"
#include "engine/tune_subject.h"
#include "sapwood/tune.h"
#include "tune/config_fields.h"
#include "tune/measure.h"

namespace sapwood {

class CudaMeasurer : public tune::Measurer {
public:
    CudaMeasurer(std::shared_ptr<cuda::Device> device, std::unique_ptr<TuneSubject> subject, const TunePolicy& policy);
    ~CudaMeasurer() override;

    Built build(const DecodeConfig& config) override;
    std::string check(const DecodeConfig& config) override;
    double sample(const DecodeConfig& config) override;
    void release(const DecodeConfig& config) override;

private:
    struct Ready {
        TuneSubject::Prepared plan;
        void* graph = nullptr;
        int calls = 0;
    };
    struct Less {
        bool operator()(const DecodeConfig& a, const DecodeConfig& b) const { return tune::compare_configs(a, b) < 0; }
    };

    /// What a launch wrote.
    struct Values {
        std::vector<std::vector<float>> tensors;
        std::vector<float> lse;
    };

    Ready& ready(const DecodeConfig& config);
    Values run(const DecodeConfig& config);
    void capture(Ready& ready);
    double time(const std::function<void()>& enqueue);
    /// Turns a driver error into DeviceLost if the device answers to nothing any more.
    template <class Body>
    auto guarded(const Body& body);

    std::shared_ptr<cuda::Device> device_;
    std::unique_ptr<TuneSubject> subject_;
    TuneResult result_;
    TunePolicy policy_;
    void* stream_ = nullptr;
    void* start_ = nullptr;
    void* stop_ = nullptr;
    std::map<DecodeConfig, Ready, Less> ready_;
    std::vector<float> values_of_;  // a 16-bit pattern
    Values reference_;
    std::size_t next_set_ = 0;
};

}  // namespace sapwood
