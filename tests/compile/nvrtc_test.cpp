// SPDX-License-Identifier: Apache-2.0
// NVRTC itself, without a GPU. Where it is not installed these tests pass with a message.
#include <doctest/doctest.h>

#include <algorithm>
#include <array>
#include <cstdlib>
#include <cstring>
#include <optional>
#include <thread>

#include "cuda/nvrtc.h"
#include "cuda/nvrtc_locate.h"
#include "sapwood/error.h"

using namespace sapwood;

namespace {

bool have_nvrtc() {
    if (!cuda::Nvrtc().path().empty()) return true;
    MESSAGE("NVRTC was not found; skipped");
    return false;
}

constexpr const char* kToy = R"(
#include "toy/scale.h"
extern "C" __global__ void toy(float* x, int n) {
    __shared__ float tile[128];
    tile[threadIdx.x] = x[threadIdx.x];
    __syncthreads();
    if (threadIdx.x < n) x[threadIdx.x] = scale(tile[127 - threadIdx.x]);
}
)";

// Not terminated where the text ends: a header is a view.
constexpr std::string_view kScale = std::string_view("__device__ float scale(float x) { return 2 * x; }@@@").substr(0, 49);
constexpr std::array<jit::Header, 1> kHeaders = {jit::Header{"toy/scale.h", kScale}};

jit::CompileRequest toy(const std::string& target) {
    jit::CompileRequest request;
    request.name = "toy<128>";
    request.source = kToy;
    request.entry = "toy";
    request.target = target;
    request.options = {"-std=c++20"};
    request.headers = kHeaders;
    return request;
}

/// Code and texts of the Error that compiling raises; empty if it raises none.
std::optional<Error> compile_error(const jit::CompileRequest& request) {
    cuda::Nvrtc nvrtc;
    try {
        nvrtc.compile(request);
    } catch (const Error& error) {
        return error;
    }
    return std::nullopt;
}

bool holds(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

/// Sets one variable for a scope.
class Variable {
public:
    Variable(const char* name, const char* value) : name_(name) {
        if (const char* old = std::getenv(name)) old_ = old;
        setenv(name, value, 1);
    }
    ~Variable() { old_ ? setenv(name_, old_->c_str(), 1) : unsetenv(name_); }
    Variable(const Variable&) = delete;
    Variable& operator=(const Variable&) = delete;

private:
    const char* name_;
    std::optional<std::string> old_;
};

}  // namespace

TEST_CASE("nvrtc: a toy kernel becomes a cubin for every family") {
    if (!have_nvrtc()) return;
    cuda::Nvrtc nvrtc;
    for (const char* target : {"sm_80", "sm_90a", "sm_120a"}) {
        CAPTURE(target);
        const auto archs = nvrtc.supported_archs();
        if (std::find(archs.begin(), archs.end(), std::atoi(target + 3)) == archs.end()) continue;
        const jit::Artifact artifact = nvrtc.compile(toy(target));
        REQUIRE(artifact.payload.size() > 64);
        CHECK(std::memcmp(artifact.payload.data(), "\177ELF", 4) == 0);
        CHECK(artifact.kind == jit::PayloadKind::cubin);
        CHECK(artifact.entry == "toy");
        CHECK(artifact.target == target);
        CHECK(artifact.compiler == nvrtc.identity());
        CHECK(artifact.log.empty());
        CHECK(artifact.resources.registers > 0);
        CHECK(artifact.resources.static_shared == 512);
        CHECK(artifact.resources.spill_bytes == 0);
        CHECK(artifact.compile_ms > 0);
        CHECK(nvrtc.compile(toy(target)).payload == artifact.payload);  // content addressing rests on this
    }
}

TEST_CASE("nvrtc: threads compile side by side") {
    if (!have_nvrtc()) return;
    cuda::Nvrtc nvrtc;
    std::array<jit::Artifact, 4> artifacts;
    {
        std::vector<std::jthread> threads;
        for (jit::Artifact& artifact : artifacts) threads.emplace_back([&] { artifact = nvrtc.compile(toy("sm_90a")); });
    }
    for (const jit::Artifact& artifact : artifacts) {
        CHECK(artifact.payload.size() > 64);
        CHECK(artifact.payload == artifacts[0].payload);
    }
}

TEST_CASE("nvrtc: a broken source raises with the compiler's own words") {
    if (!have_nvrtc()) return;
    jit::CompileRequest request = toy("sm_90a");
    request.source = "extern \"C\" __global__ void toy(float* x) {\n    x[0] = undeclared_thing;\n}\n";
    const auto error = compile_error(request);
    REQUIRE(error.has_value());
    CHECK(error->code() == ErrorCode::kCompileFailed);
    CHECK(holds(error->what(), "toy<128>"));
    CHECK(holds(error->what(), "sm_90a"));
    CHECK(holds(error->what(), "undeclared_thing"));
    CHECK(holds(error->detail(), "toy.cu(2)"));
    CHECK(holds(error->detail(), "--gpu-architecture=sm_90a"));
    CHECK(holds(error->detail(), "NVRTC " + cuda::Nvrtc().version()));
}

TEST_CASE("nvrtc: a long log is cut, an unknown option and a missing entry are told") {
    if (!have_nvrtc()) return;
    jit::CompileRequest request = toy("sm_80");
    request.source.clear();
    for (int i = 0; i < 60; ++i) request.source += "int* p" + std::to_string(i) + " = undeclared" + std::to_string(i) + ";\n";
    auto error = compile_error(request);
    REQUIRE(error.has_value());
    CHECK(error->code() == ErrorCode::kCompileFailed);
    CHECK(std::count(error->detail().begin(), error->detail().end(), '\n') < 60);
    CHECK(holds(error->detail(), "more lines"));

    request = toy("sm_80");
    request.options.push_back("--no-such-option");
    error = compile_error(request);
    REQUIRE(error.has_value());
    CHECK(error->code() == ErrorCode::kCompileFailed);
    CHECK(holds(error->what(), "no-such-option"));

    request = toy("sm_80");
    request.entry = "absent";
    error = compile_error(request);
    REQUIRE(error.has_value());
    CHECK(error->code() == ErrorCode::kCompileFailed);
    CHECK(holds(error->what(), "\"absent\""));
}

TEST_CASE("nvrtc: spills are counted") {
    if (!have_nvrtc()) return;
    jit::CompileRequest request = toy("sm_90a");
    request.options.push_back("--maxrregcount=32");
    request.source = R"(
extern "C" __global__ void toy(float* x, int n) {
    float v[96];
    for (int i = 0; i < 96; ++i) v[i] = x[i * 32 + threadIdx.x];
    for (int k = 0; k < n; ++k) {
#pragma unroll
        for (int i = 0; i < 96; ++i) v[i] = v[i] * v[(i * 7 + 5) % 96] + x[k];
    }
    for (int i = 0; i < 96; ++i) x[i * 32 + threadIdx.x] = v[i];
}
)";
    const jit::Artifact artifact = cuda::Nvrtc().compile(request);
    CHECK(artifact.resources.spill_bytes > 0);
    CHECK(artifact.resources.registers <= 32);
}

TEST_CASE("nvrtc: a target that it does not know is refused with those it knows") {
    if (!have_nvrtc()) return;
    for (const char* target : {"sm_77", "sm_999", "compute_90", "host", ""}) {
        CAPTURE(target);
        const auto error = compile_error(toy(target));
        REQUIRE(error.has_value());
        CHECK(error->code() == ErrorCode::kUnsupportedDevice);
        CHECK(holds(error->what(), "sm_80"));
        CHECK(holds(error->what(), "SAPWOOD_NVRTC"));
    }
}

TEST_CASE("nvrtc: the identity names the build and is the same for every instance") {
    if (!have_nvrtc()) return;
    cuda::Nvrtc first, second;
    const std::string identity = first.identity();
    CHECK(identity.starts_with("nvrtc:"));
    CHECK(holds(identity, "+builtins:"));
    CHECK(identity == first.identity());
    CHECK(identity == second.identity());
    CHECK(first.path() == second.path());
    first.version();  // loads the library, which then is found as one that is loaded already
    CHECK(cuda::Nvrtc().identity() == identity);
    CHECK(cuda::elf_build_id("/nonexistent").empty());
    CHECK(cuda::elf_build_id(__FILE__).empty());
}

TEST_CASE("nvrtc: an explicit path decides alone") {
    {
        const Variable variable("SAPWOOD_NVRTC", "/nowhere/libnvrtc.so.13");
        cuda::Nvrtc nvrtc;
        CHECK(nvrtc.path().empty());
        for (int use = 0; use < 2; ++use) {
            try {
                use == 0 ? static_cast<void>(nvrtc.identity()) : static_cast<void>(nvrtc.compile(toy("sm_80")));
                FAIL("another NVRTC was taken silently");
            } catch (const Error& error) {
                CHECK(error.code() == ErrorCode::kNoCompiler);
                CHECK(holds(error.what(), "SAPWOOD_NVRTC"));
                CHECK(holds(error.what(), "/nowhere/libnvrtc.so.13"));
            }
        }
    }
    {
        const Variable variable("SAPWOOD_NVRTC", __FILE__);  // a file, but no library
        CHECK(cuda::Nvrtc().path().empty());
    }
    if (!have_nvrtc()) return;
    const std::string found = cuda::Nvrtc().path();
    const Variable variable("SAPWOOD_NVRTC", found.c_str());
    CHECK(cuda::Nvrtc().path() == found);
}
