// SPDX-License-Identifier: Apache-2.0
#include "support/gpu.h"

#include <atomic>
#include <cstdio>

#include "cuda/device.h"

namespace sapwood::support {
namespace {

// tools/test reads this line: what a missing GPU left out is not a pass.
struct Skipped {
    std::atomic<int> tests{0}, others{0};
    ~Skipped() {
        if (tests + others > 0) std::printf("skipped: %d gpu cases, %d whole tests\n", tests + others, tests.load());
    }
};
Skipped skipped;

}  // namespace

bool gpu_available() {
    static const bool available = cuda::device_count() > 0;
    if (!available) ++skipped.tests;
    return available;
}

void skip_gpu_cases(int count) { skipped.others += count; }

}  // namespace sapwood::support
