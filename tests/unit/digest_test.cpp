// SPDX-License-Identifier: Apache-2.0
#include "base/digest.h"

#include <doctest/doctest.h>

#include <set>

#include "jit/disk_cache.h"
#include "support/cache_fixture.h"

namespace sapwood {
namespace {

std::span<const std::byte> bytes(std::string_view text) { return std::as_bytes(std::span(text.data(), text.size())); }

TEST_CASE("digest: BLAKE2b-256, as b2sum -l 256 prints it") {
    CHECK(to_hex(digest_of(bytes("abc"))) == "bddd813c634239723171ef3fee98579b94964e3bb1cb3e427262c8c068d52319");
    CHECK(to_hex(digest_of({})) == "0e5751c026e543b2e8ab2eb06099daa1d1e5df47778f7787faab45cdf12fe3a8");
    Hasher parts;
    CHECK(parts.raw(bytes("a")).raw({}).raw(bytes("bc")).finish() == digest_of(bytes("abc")));
}

TEST_CASE("digest: fields that concatenate alike hash apart") {
    const auto of = [](std::initializer_list<std::pair<int, std::string_view>> fields) {
        Hasher hasher;
        for (const auto& [tag, text] : fields) hasher.field(static_cast<std::uint16_t>(tag), text);
        return hasher.finish();
    };
    const std::set<Digest> digests = {of({{1, "ab"}, {1, "c"}}), of({{1, "a"}, {1, "bc"}}), of({{1, "abc"}}),
                                      of({{1, "abc"}, {1, ""}}), of({{2, "abc"}}),          of({{256, "abc"}})};
    CHECK(digests.size() == 6);
}

TEST_CASE("content digest: every input that changes code counts, the name does not") {
    const jit::CompileRequest base = test::request_for("source");
    std::vector<jit::CompileRequest> others(7, base);
    others[0].source += " ";
    others[1].entry += "2";
    others[2].target = "sm_90";
    others[3].options = {"-std=c++20"};
    others[4].options = {"-std=c++20 -default-device"};
    others[5].options = {"-default-device", "-std=c++20"};
    others[6].headers_digest = "0123abce";
    std::set<Digest> digests = {jit::content_digest(base, "one"), jit::content_digest(base, "two")};
    for (const auto& other : others) digests.insert(jit::content_digest(other, "one"));
    CHECK(digests.size() == 9);
    jit::CompileRequest renamed = base;
    renamed.name = "for people only";
    CHECK(jit::content_digest(renamed, "one") == jit::content_digest(base, "one"));
}

}  // namespace
}  // namespace sapwood
