// SPDX-License-Identifier: Apache-2.0
// Files of this repository, for tests of what its documents say.
#pragma once

#include <doctest/doctest.h>

#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>

namespace sapwood::test {

inline const std::filesystem::path kRoot = SAPWOOD_SOURCE_DIR;

inline std::string text_of(const std::filesystem::path& file) {
    std::ifstream in(file);
    REQUIRE_MESSAGE(in, file.string());
    return {std::istreambuf_iterator<char>(in), {}};
}

}  // namespace sapwood::test
