// SPDX-License-Identifier: Apache-2.0
// What README.md shows is what is built: its program compiles and prints what it says, its tables are the library's and the tool's.
#include <doctest/doctest.h>

#include <cstdio>
#include <filesystem>
#include <sstream>
#include <string>
#include <vector>

#include "base/env.h"
#include "integration/source_file.h"
#include "support/cache_fixture.h"

using namespace sapwood;
using namespace sapwood::test;
namespace fs = std::filesystem;

namespace {

/// The first block fenced with this word.
std::string block_of(const std::string& text, const std::string& language) {
    const std::string fence = "```" + language + "\n";
    const std::size_t begin = text.find(fence);
    REQUIRE_MESSAGE(begin != std::string::npos, "README has no block " << language);
    const std::size_t body = begin + fence.size();
    return text.substr(body, text.find("```", body) - body);
}

/// The rows of a table whose first cell begins so.
std::vector<std::string> rows_of(const std::string& text, const std::string& start) {
    std::vector<std::string> rows;
    std::istringstream in(text);
    for (std::string line; std::getline(in, line);) {
        if (line.starts_with(start)) rows.push_back(line);
    }
    return rows;
}

std::string in_table(std::string cell) {
    for (std::size_t at = 0; (at = cell.find('|', at)) != std::string::npos; at += 2) cell.insert(at, 1, '\\');
    return cell;
}

}  // namespace

TEST_CASE("readme: its program is the one that is built, and prints what it says") {
    const std::string readme = text_of(kRoot / "README.md"), source = text_of(kRoot / "tests/integration/readme/program.cpp");
    CHECK(block_of(readme, "cpp") == source.substr(source.find('\n') + 1));  // all but the licence line
    const test::TempDir cache;
    const test::ScopedEnv directory("SAPWOOD_CACHE_DIR", cache.path().c_str());
    std::FILE* run = ::popen(SAPWOOD_README_PROGRAM, "r");
    REQUIRE(run != nullptr);
    std::string printed;
    char buffer[256];
    while (std::fgets(buffer, sizeof buffer, run) != nullptr) printed += buffer;
    CHECK(::pclose(run) == 0);
    CHECK(printed == block_of(readme, "output"));
}

TEST_CASE("readme: the environment table is the library's list") {
    const std::string readme = text_of(kRoot / "README.md");
    std::vector<std::string> expected;
    for (const env::Variable& variable : env::variables()) {
        expected.push_back("| `" + std::string(variable.name) + "` | " + in_table(variable.type) + " | " + variable.meaning +
                           " | " + variable.fallback + " |");
    }
    CHECK(rows_of(readme, "| `SAPWOOD_") == expected);
}

TEST_CASE("readme: what the tree and the commands name is there") {
    const std::string readme = text_of(kRoot / "README.md");
    std::istringstream tree(block_of(readme, "tree"));
    std::vector<std::string> named;
    for (std::string line; std::getline(tree, line);) {
        if (!line.starts_with(' ')) named.push_back(line.substr(0, line.find(' ')));
    }
    CHECK(named.size() >= 6);
    for (const std::string& name : named) CHECK_MESSAGE(fs::is_directory(kRoot / name), name);
    for (const auto& room : fs::directory_iterator(kRoot / "lib")) {
        CHECK_MESSAGE(block_of(readme, "tree").find(room.path().filename().string()) != std::string::npos, room.path().string());
    }
    for (const char* command : {"tools/demo", "tools/test", "tools/bootstrap"}) {
        CHECK(readme.find(command) != std::string::npos);
        CHECK((fs::status(kRoot / command).permissions() & fs::perms::owner_exec) != fs::perms::none);
    }
}
