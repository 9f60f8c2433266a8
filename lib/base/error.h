// SPDX-License-Identifier: Apache-2.0
// The one funnel for errors: a breakpoint on raise() sees every failure Sapwood reports.
#pragma once

#include "sapwood/error.h"

namespace sapwood {

[[noreturn]] void raise(ErrorCode code, const std::string& text, std::string detail = {});

}  // namespace sapwood
