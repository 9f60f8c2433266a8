// SPDX-License-Identifier: Apache-2.0
// GPU tests on machines without one: skipped, and counted, never silently.
#pragma once

namespace sapwood::support {

/// True if there is a driver with at least one device. When false, the calling test case counts as skipped: call it once a case, as
/// `if (!gpu_available()) return;`. The sum is printed when the program ends:
/// "skipped: N gpu cases, M whole tests".
bool gpu_available();

/// Counts further cases that a missing GPU leaves out, in a loop over many.
void skip_gpu_cases(int count);

}  // namespace sapwood::support
