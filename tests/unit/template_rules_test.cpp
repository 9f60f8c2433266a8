// SPDX-License-Identifier: Apache-2.0
// What the templates may rely on, which is little: the reason that a kernel needs no toolkit and compiles fast.
#include <doctest/doctest.h>

#include <algorithm>
#include <regex>
#include <string>

#include "kernel/render.h"
#include "kernel/template_store.h"

using namespace sapwood;

TEST_CASE("templates: nothing is included but templates, so no toolkit is needed and no header can be stale") {
    const std::regex include("#\\s*include\\s*([<\"])([^>\"]+)[>\"]");
    int seen = 0;
    for (const jit::Header& file : template_set()) {
        // The host target's own runtime is compiled by a C++ compiler, which brings its library.
        const bool host = file.path.starts_with("isa/host");
        const std::string text(file.text);
        for (std::sregex_iterator it(text.begin(), text.end(), include), end; it != end; ++it, ++seen) {
            const std::string name = (*it)[2];
            // A slot of an entry stands for what some key has it filled with; what it names is then found or not by that key's
            // tests.
            const std::regex matches(std::regex_replace(name, std::regex("@[a-z_]+@"), "[a-z_]+"));
            const bool ours =
                (*it)[1] == "\"" && std::any_of(template_set().begin(), template_set().end(), [&](const jit::Header& other) {
                    return std::regex_match(other.path.begin(), other.path.end(), matches);
                });
            CHECK_MESSAGE((ours || host), file.path << " includes " << name);
        }
    }
    CHECK(seen > 10);
}

TEST_CASE("templates: the options of a compile are those in the list, and no precompiled header is among them") {
    KernelKey key;
    key.family = static_cast<std::uint8_t>(Family::decode);
    key.head_dim = key.head_dim_v = 128, key.group = 4, key.block_kv = 64, key.warps = 8, key.producers = 4, key.stages = 3,
    key.blocks = 1;
    const std::string_view target = "sm_90a";
    std::copy(target.begin(), target.end(), key.target.begin());
    CHECK(render(key).options == std::vector<std::string>{"-std=c++20", "-default-device"});
}
