// SPDX-License-Identifier: Apache-2.0
#include <doctest/doctest.h>

#include <cmath>

#include "jit/disk_cache.h"
#include "support/cache_fixture.h"

namespace sapwood::jit {
namespace {

Artifact sample() {
    test::FakeCompiler compiler;
    return compiler.compile(test::request_for("sample"));
}

TEST_CASE("entry file: what goes in comes out") {
    const Artifact in = sample();
    const Digest digest = digest_of(in.payload);
    const auto file = encode_entry(in, digest);
    std::string fault = "unset";
    const auto out = decode_entry(file, &digest, &fault);
    REQUIRE(out != nullptr);
    CHECK(fault.empty());
    CHECK(out->kind == in.kind);
    CHECK(out->name == in.name);
    CHECK(out->entry == in.entry);
    CHECK(out->target == in.target);
    CHECK(out->compiler == in.compiler);
    CHECK(out->log == in.log);
    CHECK(out->compile_ms == in.compile_ms);
    CHECK(out->resources.registers == 32);
    CHECK(out->resources.static_shared == 1024);
    CHECK(out->resources.spill_bytes == 8);
    CHECK(out->resources.max_threads == 256);
    CHECK(out->payload == in.payload);
    CHECK(file.size() % 64 == in.payload.size() % 64);  // the payload lies aligned
}

TEST_CASE("entry file: a compiler log of any bytes and length still gives a valid entry") {
    Artifact in = sample();
    in.log = std::string(1 << 20, 'x') + "\xff\xfe";
    in.log[100] = '\xc3';  // a UTF-8 lead byte without its tail
    in.compile_ms = std::nan("");
    const auto file = encode_entry(in, Digest{});
    CHECK(file.size() < 64 << 10);
    CHECK(decode_entry(file, nullptr, nullptr) != nullptr);
}

TEST_CASE("entry file: another digest, a byte more, a foreign payload are refused with a reason") {
    const Artifact in = sample();
    const Digest digest = digest_of(in.payload);
    std::string fault;

    Digest other = digest;
    other[31] ^= 1;
    CHECK(decode_entry(encode_entry(in, digest), &other, &fault) == nullptr);
    CHECK(fault == "holds another kernel than its name says");

    auto longer = encode_entry(in, digest);
    longer.push_back(std::byte{0});
    CHECK(decode_entry(longer, &digest, &fault) == nullptr);
    CHECK(fault.find("size") != std::string::npos);

    // Zeros load as an empty module in the CUDA driver; a valid checksum must not let them through.
    Artifact zeros = in;
    zeros.payload.assign(64, std::byte{0});
    CHECK(decode_entry(encode_entry(zeros, digest), &digest, &fault) == nullptr);
    CHECK(fault.find("ELF") != std::string::npos);

    Artifact cubin_as_host = in;
    cubin_as_host.kind = PayloadKind::host_object;
    CHECK(decode_entry(encode_entry(cubin_as_host, digest), &digest, &fault) == nullptr);
    CHECK(fault.find("machine 190") != std::string::npos);
}

}  // namespace
}  // namespace sapwood::jit
