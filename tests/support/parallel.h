// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <functional>

namespace sapwood::support {

/// Calls body(begin, end) on pieces of [0, n) of at most `grain`, on `threads` threads (0 = one a core). The first exception is
/// thrown again on the caller's thread.
void parallel_for(std::int64_t n, std::int64_t grain, const std::function<void(std::int64_t, std::int64_t)>& body,
                  unsigned threads = 0);

}  // namespace sapwood::support
