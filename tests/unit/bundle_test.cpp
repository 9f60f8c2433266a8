// SPDX-License-Identifier: Apache-2.0
#include "jit/bundle.h"

#include <doctest/doctest.h>

#include "base/error.h"
#include "support/cache_fixture.h"

namespace sapwood::jit {
namespace {

namespace fs = std::filesystem;

constexpr const char* kFamily = "fake";

/// Installed nowhere.
struct NoCompiler : Compiler {
    std::string identity() override { raise(ErrorCode::kNoCompiler, "no fake was found"); }
    std::string family() override { return kFamily; }
    Artifact compile(const CompileRequest&) override { raise(ErrorCode::kNoCompiler, "no fake was found"); }
};

BundleContents bundle_of(std::initializer_list<const char*> sources, const std::string& build = "fake-build-1") {
    BundleContents contents;
    contents.template_set = "0123abcd";
    test::FakeCompiler compiler;
    compiler.identity_text = build;
    for (const char* source : sources) {
        const CompileRequest request = test::request_for(source);
        Artifact artifact = compiler.compile(request);
        artifact.compiler = build;
        artifact.compile_ms = static_cast<double>(contents.kernels.size()) + 0.25;  // never the same twice
        contents.add(content_digest(request, kFamily), artifact, content_digest(request, build));
    }
    return contents;
}

struct File {
    test::TempDir dir;
    fs::path path = dir.path() / "kernels.swb";
    std::vector<std::byte> bytes;

    explicit File(const BundleContents& contents) : bytes(encode_bundle(contents)) { test::write_bytes(path, bytes); }
    std::shared_ptr<const Bundle> open() const { return Bundle::open(path, nullptr); }
};

TEST_CASE("bundle: the same contents are the same bytes, in whatever order they came") {
    BundleContents one = bundle_of({"a", "b", "c"}), other = bundle_of({"c", "a", "b"});
    one.attachments["x"] = other.attachments["x"] = test::payload_of("x");
    CHECK(encode_bundle(one) == encode_bundle(other));
    other.attachments["x"].back() ^= std::byte{1};
    CHECK(encode_bundle(one) != encode_bundle(other));
}

TEST_CASE("bundle: serves what it holds with neither compiler nor disk; the rest falls through") {
    BundleContents contents = bundle_of({"a", "b"});
    contents.attachments["tune/x.json"] = test::payload_of("tuned");
    const File file(contents);
    const auto bundle = file.open();
    REQUIRE(bundle != nullptr);
    CHECK(bundle->template_set() == "0123abcd");
    CHECK(bundle->verify().empty());
    CHECK(bundle->contents().kernels == contents.kernels);
    REQUIRE(bundle->attachments().size() == 1);
    CHECK(bundle->read(bundle->attachments()[0], nullptr) == test::payload_of("tuned"));

    DiskCache cache(std::nullopt);
    cache.add_bundle(bundle);
    NoCompiler none;
    Origin origin{};
    CHECK(cache.get_or_compile(test::request_for("a"), none, &origin)->payload == test::payload_of("a"));
    CHECK(origin == Origin::bundle);
    cache.get_or_compile(test::request_for("a"), none, &origin);
    CHECK(origin == Origin::memory);
    CHECK_THROWS_AS(cache.get_or_compile(test::request_for("c"), none), Error);
    test::FakeCompiler compiler;  // another family: its artifacts may differ, so the bundle's are not taken
    CHECK(cache.get_or_compile(test::request_for("a"), compiler, &origin) != nullptr);
    CHECK(origin == Origin::compiled);
    CHECK(cache.counters().bundle_hits == 1);

    cache.add_bundle(Bundle::open(File(bundle_of({"c"})).path, nullptr));  // whose file is gone by now, its descriptor is not
    CHECK(cache.get_or_compile(test::request_for("c"), none, &origin) != nullptr);
    CHECK(origin == Origin::bundle);
}

TEST_CASE("bundle: cut short anywhere it is refused; a flipped bit is found, and costs the part it is in") {
    BundleContents contents = bundle_of({"a", "b"});
    contents.attachments["x"] = test::payload_of("x");
    const File file(contents);
    std::string fault;
    for (std::size_t size = 0; size < file.bytes.size(); size += 7) {
        test::write_bytes(file.path, std::span(file.bytes).first(size));
        const bool refused = file.open() == nullptr;
        CHECK_MESSAGE(refused, size);
    }
    int served = 0;
    const Digest digest = digest_of(std::span(file.bytes).first(file.bytes.size() - 32));
    for (std::size_t at = 0; at < file.bytes.size(); ++at) {
        auto bytes = file.bytes;
        bytes[at] ^= std::byte{1} << at % 8;
        test::write_bytes(file.path, bytes);
        REQUIRE_MESSAGE(Bundle::open(file.path, &fault, &digest) == nullptr, at);
        CHECK(!fault.empty());
        const auto bundle = file.open();
        if (bundle == nullptr) continue;
        CHECK_MESSAGE(!bundle->verify().empty(), at);
        for (const char* source : {"a", "b"}) {
            const BundleEntry* entry = bundle->find(content_digest(test::request_for(source), kFamily));
            REQUIRE(entry != nullptr);
            const auto artifact = bundle->read(*entry, &fault);
            CHECK((artifact == nullptr || artifact->payload == test::payload_of(source)));
            served += artifact != nullptr;
        }
    }
    CHECK(served > 0);
    test::write_bytes(file.path, file.bytes);
    CHECK(Bundle::open(file.path, &fault, &digest) != nullptr);
    CHECK(Bundle::open(file.dir.path(), &fault) == nullptr);
    CHECK(Bundle::open(file.dir.path() / "none", &fault) == nullptr);
    CHECK(fault.find("errno 2") != std::string::npos);
}

TEST_CASE("bundle: a damaged kernel costs one warning and is compiled; its neighbour is served") {
    const File file(bundle_of({"a", "b"}));
    auto bytes = file.bytes;
    const auto good = file.open();
    const BundleEntry* hit = good->find(content_digest(test::request_for("a"), kFamily));
    bytes[hit->offset + hit->bytes - 1] ^= std::byte{4};
    test::write_bytes(file.path, bytes);
    struct Here : test::FakeCompiler {
        std::string family() override { return kFamily; }
    } compiler;
    test::LogCapture capture;
    DiskCache cache(std::nullopt);
    cache.add_bundle(file.open());
    Origin origin{};
    CHECK(cache.get_or_compile(test::request_for("a"), compiler, &origin)->payload == test::payload_of("a"));
    CHECK(origin == Origin::compiled);
    CHECK(cache.get_or_compile(test::request_for("b"), compiler, &origin)->payload == test::payload_of("b"));
    CHECK(origin == Origin::bundle);
    CHECK(capture.warnings().size() == 1);
    CHECK(cache.counters().bundle_damaged >= 1);
}

TEST_CASE("bundle: merging is a union, associative, and lists what it left out") {
    const BundleContents parts[] = {bundle_of({"a", "b"}), bundle_of({"b", "c"}, "fake-build-2"), bundle_of({"c", "d"})};
    const MergedBundle all = merge_bundles(parts);
    CHECK(all.contents.kernels.size() == 4);
    CHECK(all.conflicts.size() == 2);
    CHECK(all.conflicts[0].find("fake-build-2") != std::string::npos);
    const BundleContents right[] = {parts[0], merge_bundles(std::span(parts).subspan(1)).contents};
    const BundleContents left[] = {merge_bundles(std::span(parts).first(2)).contents, parts[2]};
    CHECK(encode_bundle(merge_bundles(right).contents) == encode_bundle(all.contents));
    CHECK(encode_bundle(merge_bundles(left).contents) == encode_bundle(all.contents));

    BundleContents tuned[] = {parts[0], parts[0]};
    tuned[0].attachments["t"] = test::payload_of("1");
    tuned[1].attachments["t"] = test::payload_of("2");
    CHECK(merge_bundles(tuned).conflicts.size() == 1);
    const auto joined = merge_bundles(tuned, [](const std::string&, auto, auto second) {
        return std::optional(std::vector<std::byte>(second.begin(), second.end()));
    });
    CHECK(joined.conflicts.empty());
    CHECK(joined.contents.attachments.at("t") == test::payload_of("2"));
    tuned[1].template_set = "other";
    CHECK_THROWS_AS(merge_bundles(tuned), Error);
}

}  // namespace
}  // namespace sapwood::jit
