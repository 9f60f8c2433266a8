// SPDX-License-Identifier: Apache-2.0
// Reads what `ptxas -v` tells of a kernel out of a compile log.
#pragma once

#include <string>
#include <string_view>

#include "jit/artifact.h"

namespace sapwood::cuda {

struct PtxasLog {
    jit::Resources resources;
    bool found = false;   // the log speaks of the entry; else resources are all zero
    std::string remarks;  // the log without the routine lines: all advice by number, such as (C7510), then the first 200 others
};

/// Takes the figures of `entry` alone; other functions of the unit are left out.
PtxasLog read_ptxas_log(std::string_view log, std::string_view entry);

/// At most `count` lines of `text`, with a note of how many were left out.
std::string first_lines(std::string_view text, int count);

}  // namespace sapwood::cuda
