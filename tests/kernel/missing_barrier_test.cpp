// SPDX-License-Identifier: Apache-2.0
// Shuffled schedules on the host target are there to find missing barriers: so one is taken out of the real decode kernel.
#include <doctest/doctest.h>
#include <fcntl.h>

#include <algorithm>
#include <fstream>
#include <iterator>

#include "kernel/decode_cases.h"
#include "kernel/template_store.h"
#include "support/cache_fixture.h"

using namespace sapwood;
using namespace sapwood::test;
namespace fs = std::filesystem;

namespace {

constexpr const char* kTestCase = "decode on host: a missing barrier in the kernel is caught";
constexpr const char* kMarker = "SAPWOOD_TEST_SEEKS_FAULT";
constexpr int kSeeds = 8, kFirst = 100, kNone = kFirst + kSeeds + 1;

/// The first schedule that ends in a wrong result, an Error, a crash or never; each has a process of its own.
int first_fault() {
    DecodeCase which = {"", DType::fp16, 128, 0, 4, 1, 1, crowded(20)};
    which.config.split = 2;
    const auto plan_on = [&](Engine& engine, const Scene& scene) {
        return engine.plan_decode(which.problem(), scene.forest, which.config);
    };
    Engine first(host_options());
    DecodePlan compiled = plan_on(first, Scene(which));
    first.prepare(compiled);  // for all of them
    for (int seed = 1; seed <= kSeeds; ++seed) {
        const int status = finish_child(start_child([&] {
            ::alarm(15);
            Engine engine(host_options(static_cast<std::uint64_t>(seed)));
            Scene scene(which);
            DecodePlan plan = plan_on(engine, scene);
            Bound({&engine, nullptr}, scene).run(plan);
            return scene.fault().empty() ? 0 : 1;
        }));
        if (status != 0) return kFirst + seed;
    }
    return kNone;
}

/// The same test case in another process, whose kernels come from `templates`.
int first_fault_with(const fs::path& templates) {
    return finish_child(start_child([&] {
        ::alarm(200);
        const int nowhere = ::open("/dev/null", O_WRONLY);  // a crash is reported by doctest, and would be counted as ours
        ::dup2(nowhere, STDOUT_FILENO);
        ::dup2(nowhere, STDERR_FILENO);
        ::setenv("SAPWOOD_KERNEL_DIR", templates.c_str(), 1);
        ::setenv(kMarker, "1", 1);
        const std::string filter = std::string("-tc=") + kTestCase;
        ::execl("/proc/self/exe", "test_kernel", filter.c_str(), nullptr);
        return 98;
    }));
}

void edit(const fs::path& file, const std::string& from, const std::string& to) {
    std::ifstream in(file);
    std::string text{std::istreambuf_iterator<char>(in), {}};
    const std::size_t at = text.find(from);
    REQUIRE_MESSAGE(at != std::string::npos,
                    "\"" << from << "\" is no longer in " << file.filename().string() << ": plant it elsewhere");
    std::ofstream(file) << text.replace(at, from.size(), to);
}

}  // namespace

TEST_CASE("decode on host: a missing barrier in the kernel is caught") {
    if (std::getenv(kMarker) != nullptr) ::_exit(first_fault());
    TempDir dir;
    const fs::path templates = dir.path() / "templates";
    for (const jit::Header& header : template_set()) {
        fs::create_directories((templates / header.path).parent_path());
        std::ofstream(templates / header.path) << header.text;
    }
    std::string file, from, to;
    bool planted = true;
    SUBCASE("none: the copy itself is right") { planted = false; }
    SUBCASE("compute warps do not wait for a full stage") {
        file = "memory/ring.h", from = "mbarrier_wait(full(at.stage), at.parity);", to = "(void)at;";
    }
    SUBCASE("copy warps do not wait for an empty stage") {
        file = "memory/ring.h", from = "mbarrier_wait(empty(at.stage), at.parity ^ 1);", to = "(void)at;";
    }
    SUBCASE("partial results are added up before all are written") {
        file = "attention/decode_merge.h", from = "while (load_acquire(&params.counters->finished) < items) {}",
        to = "(void)items;";
    }
    if (planted) edit(templates / file, from, to);
    const int first = first_fault_with(templates);
    if (planted) {
        CHECK(first > kFirst);
        CHECK(first < kNone);
    } else {
        CHECK(first == kNone);
    }
}
