// SPDX-License-Identifier: Apache-2.0
// What the documents promise about tests and tools is there.
#include <doctest/doctest.h>

#include <filesystem>
#include <regex>
#include <sstream>
#include <string>

#include "integration/source_file.h"

using namespace sapwood::test;
namespace fs = std::filesystem;

namespace {

std::string all_tests() {
    std::string all;
    for (const auto& file : fs::recursive_directory_iterator(kRoot / "tests"))
        if (file.path().extension() == ".cpp") all += text_of(file.path());
    return all;
}

}  // namespace

TEST_CASE("docs: every test that answers one of the fifteen pains exists") {
    const std::string tests = all_tests();
    std::istringstream in(text_of(kRoot / "docs/fifteen-pains.md"));
    const std::regex name("\"([^\"]+)\"");
    int rows = 0, named = 0;
    for (std::string line; std::getline(in, line);) {
        rows += std::regex_search(line, std::regex("^\\| [0-9]+ \\|"));
        for (std::sregex_iterator it(line.begin(), line.end(), name), end; it != end; ++it, ++named) {
            const std::string quoted = (*it)[0];
            CHECK_MESSAGE(
                (tests.find("TEST_CASE(" + quoted) != std::string::npos || tests.find(", " + quoted + ")") != std::string::npos),
                "no test " << quoted);
        }
    }
    CHECK(rows == 15);
    CHECK(named > 20);
}

TEST_CASE("docs: the commands that the serving guide shows are the tool's") {
    const std::string guide = text_of(kRoot / "docs/serving.md"), tool = text_of(kRoot / "tools/main.cpp");
    const std::regex command("sapwood ([a-z][a-z-]+)");
    int seen = 0;
    for (std::sregex_iterator it(guide.begin(), guide.end(), command), end; it != end; ++it, ++seen) {
        std::string name = (*it)[1];
        for (char& c : name) c = c == '-' ? '_' : c;
        CHECK_MESSAGE(tool.find("add_" + name + "(") != std::string::npos, name);
    }
    CHECK(seen > 8);
}

TEST_CASE("docs: the tests and cases that answer the originals' defects exist") {
    const std::string tests = all_tests();
    const std::regex name("\"([^\"]+)\"");
    const auto named = [&](const char* guide, const std::string& original) {
        std::istringstream in(text_of(kRoot / guide));
        int count = 0;
        for (std::string line; std::getline(in, line);) {
            if (!line.starts_with("| " + original)) continue;
            for (std::sregex_iterator it(line.begin(), line.end(), name), end; it != end; ++it, ++count)
                CHECK_MESSAGE(tests.find((*it)[1]) != std::string::npos, "no test or case " << (*it)[1]);
        }
        return count;
    };
    CHECK(named("docs/verify.md", "LongSpec") + named("docs/verify.md", "FST") >= 10);
    CHECK(named("docs/training.md", "FA2-tree") >= 8);
}
