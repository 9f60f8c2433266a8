// SPDX-License-Identifier: Apache-2.0
// A fault of machine code that no sanitizer sees: a register that running warpgroup products still read is written before they have
// been waited for. ptxas gives the registers of a product's operand to other values once the instruction is behind it and a branch
// lies between (13.0); whoever writes such a kernel has to name them once more after the wait (wgmma_settled).
#pragma once

#include <doctest/doctest.h>

#include <filesystem>
#include <optional>
#include <string>
#include <vector>

namespace sapwood::test {

/// Of one kernel's listing by `cuobjdump -sass`: address and text of every such instruction.
std::vector<std::string> operand_hazards(const std::string& listing);

/// Of every sm_90a kernel of a kernel cache, behind its name. None if cuobjdump is not on PATH.
std::optional<std::vector<std::string>> operand_hazards_of_cache(const std::filesystem::path& root);

/// Fails for each of them.
inline void check_operand_hazards(const std::filesystem::path& root) {
    const auto hazards = operand_hazards_of_cache(root);
    if (!hazards) MESSAGE("cuobjdump was not found: machine code was not looked into");
    for (const std::string& hazard : hazards.value_or(std::vector<std::string>{})) FAIL_CHECK(hazard);
}

}  // namespace sapwood::test
