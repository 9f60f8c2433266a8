// SPDX-License-Identifier: Apache-2.0
#include "jit/disk_cache.h"

#include <doctest/doctest.h>
#include <sys/stat.h>

#include <thread>

#include "base/error.h"
#include "support/cache_fixture.h"

namespace sapwood::jit {
namespace {

namespace fs = std::filesystem;
using namespace std::chrono_literals;

void set_age(const fs::path& path, std::chrono::hours age) { fs::last_write_time(path, fs::file_time_type::clock::now() - age); }

TEST_CASE("disk cache: compiled once, then memory, then disk in the next process") {
    test::TempDir dir;
    test::FakeCompiler compiler;
    const CompileRequest request = test::request_for("a"), other = test::request_for("b");
    Origin origin{};
    {
        DiskCache cache(dir.path() / "deep" / "er");
        CHECK(cache.get_or_compile(request, compiler, &origin)->payload == test::payload_of("a"));
        CHECK(origin == Origin::compiled);
        cache.get_or_compile(request, compiler, &origin);
        CHECK(origin == Origin::memory);
        cache.get_or_compile(other, compiler);  // differing sources, two kernels
        CHECK(cache.disabled_reason().empty());
    }
    DiskCache cache(dir.path() / "deep" / "er");
    const auto found = cache.get_or_compile(request, compiler, &origin);
    CHECK(origin == Origin::disk);
    CHECK(found->payload == test::payload_of("a"));
    CHECK(found->entry == request.entry);
    CHECK(compiler.compiles == 2);
    CHECK(cache.find(content_digest(other, compiler.identity())) != nullptr);
    CHECK(cache.find(Digest{}) == nullptr);

    compiler.identity_text = "fake-build-2";  // another compiler, another kernel
    cache.get_or_compile(request, compiler, &origin);
    CHECK(origin == Origin::compiled);
}

/// Of one family with FakeCompiler, and not installed.
class MissingCompiler : public Compiler {
public:
    std::string identity() override { raise(ErrorCode::kNoCompiler, "no fake was found", "searched here"); }
    std::string family() override { return family_text; }
    Artifact compile(const CompileRequest&) override { raise(ErrorCode::kNoCompiler, "no fake was found"); }
    std::string family_text;
};

TEST_CASE("disk cache: without a compiler, what any build of it has left on disk serves") {
    test::TempDir dir;
    const fs::path root = dir.path() / "cache";
    test::FakeCompiler older, newer;
    older.payload_bytes = 300;
    newer.identity_text = "fake-build-2";
    const CompileRequest request = test::request_for("a");
    for (test::FakeCompiler* compiler : {&older, &newer}) DiskCache(root).get_or_compile(request, *compiler);
    MissingCompiler missing;
    Origin origin{};
    {
        DiskCache cache(root);
        CHECK(cache.get_or_compile(request, missing, &origin)->payload == test::payload_of("a"));  // the newer one's
        CHECK(origin == Origin::disk);
        cache.get_or_compile(request, missing, &origin);
        CHECK(origin == Origin::memory);
        MissingCompiler other;  // e.g. with a sanitizer among its flags
        other.family_text = "other";
        CHECK_THROWS_AS(cache.get_or_compile(request, other), Error);
        try {
            cache.get_or_compile(test::request_for("b"), missing);
            FAIL("made from nothing");
        } catch (const Error& error) {
            CHECK(error.code() == ErrorCode::kNoCompiler);
            CHECK(std::string(error.what()) ==
                  "no_compiler: kernel decode<b> is not in the kernel cache " + root.string() + ", and no fake was found");
            CHECK(error.detail() == "searched here");
        }
    }
    const auto fails = [&] {
        try {
            DiskCache(root).get_or_compile(request, missing);
        } catch (const Error& error) {
            return error.code() == ErrorCode::kNoCompiler;
        }
        return false;
    };
    // A damaged reference never leads to another kernel, a dangling one to nothing.
    DiskCache(root).get_or_compile(test::request_for("c"), newer);
    std::vector<fs::path> references;
    for (const auto& file : fs::recursive_directory_iterator(root / "v1" / "sources")) {
        if (file.is_regular_file()) references.push_back(file.path());
    }
    REQUIRE(references.size() == 2);
    const auto first = test::read_bytes(references[0]), second = test::read_bytes(references[1]);
    test::write_bytes(references[0], second);
    test::write_bytes(references[1], first);
    CHECK(fails());
    for (std::size_t bit = 0; bit < first.size() * 8; bit += 5) {
        for (std::size_t i : {0, 1}) {
            auto bytes = i == 0 ? first : second;
            bytes[bit / 8] ^= std::byte{1} << bit % 8;
            test::write_bytes(references[i], bytes);
        }
        CHECK(fails());
    }
    test::write_bytes(references[0], first);
    test::write_bytes(references[1], second);
    CHECK(!fails());
    fs::remove(test::entry_path(root, content_digest(request, newer.identity())));
    CHECK(fails());
    DiskCache(root).collect(test::read_bytes(test::entry_path(root, content_digest(request, older.identity()))).size());
    CHECK(fs::exists(references[0]) + fs::exists(references[1]) <= 1);
    DiskCache(root).clear();
    CHECK(fs::exists(references[0]) + fs::exists(references[1]) == 0);
}

TEST_CASE("disk cache: two threads, one compile; a failure is told to both, not kept, and publishes nothing") {
    test::TempDir dir;
    DiskCache cache(dir.path());
    std::atomic<bool> refuse{true};
    test::FakeCompiler compiler([&](const CompileRequest& request) {
        std::this_thread::sleep_for(100ms);
        if (refuse) raise(ErrorCode::kCompileFailed, request.name, "log");
    });
    std::atomic<int> told{0}, served{0}, compiled{0};
    const auto ask = [&] {
        try {
            Origin origin{};
            served += cache.get_or_compile(test::request_for("a"), compiler, &origin)->payload == test::payload_of("a");
            compiled += origin == Origin::compiled;
        } catch (const Error& error) {
            told += error.code() == ErrorCode::kCompileFailed && error.detail() == "log";
        }
    };
    const auto twice = [&] {
        std::thread other(ask);
        ask();
        other.join();
    };
    twice();
    CHECK(told == 2);
    CHECK(compiler.compiles == 1);
    CHECK(cache.list(true).empty());
    refuse = false;
    twice();
    CHECK(served == 2);
    CHECK(compiled == 1);
    CHECK(compiler.compiles == 2);
}

TEST_CASE("disk cache: layout, modes and the tag for backup tools") {
    test::TempDir dir;
    const fs::path root = dir.path() / "cache";
    test::FakeCompiler compiler;
    const CompileRequest request = test::request_for("a");
    DiskCache(root).get_or_compile(request, compiler);
    const fs::path entry = test::entry_path(root, content_digest(request, compiler.identity()));
    struct stat info {};
    REQUIRE(::stat(root.c_str(), &info) == 0);
    CHECK((info.st_mode & 07777) == 0700);
    REQUIRE(::stat(entry.c_str(), &info) == 0);
    CHECK((info.st_mode & 0077) == 0);
    CHECK(fs::exists(root / "CACHEDIR.TAG"));
    CHECK(fs::is_empty(root / "v1" / "tmp"));
}

TEST_CASE("disk cache: where the directory is looked for, and how it is switched off") {
    test::TempDir dir;
    const std::string explicit_dir = dir.path() / "explicit", env_dir = dir.path() / "env", xdg = dir.path() / "xdg",
                      home = dir.path() / "home";
    const test::ScopedEnv set_home("HOME", home.c_str()), no_xdg("XDG_CACHE_HOME", nullptr), no_dir("SAPWOOD_CACHE_DIR", nullptr);
    CHECK(DiskCache(fs::path()).root() == home + "/.cache/sapwood");
    const test::ScopedEnv relative_xdg("XDG_CACHE_HOME", "relative");  // invalid by the XDG specification
    CHECK(DiskCache(fs::path()).root() == home + "/.cache/sapwood");
    const test::ScopedEnv set_xdg("XDG_CACHE_HOME", xdg.c_str());
    CHECK(DiskCache(fs::path()).root() == xdg + "/sapwood");
    const test::ScopedEnv set_dir("SAPWOOD_CACHE_DIR", env_dir.c_str());
    CHECK(DiskCache(fs::path()).root() == env_dir);
    CHECK(DiskCache(fs::path(explicit_dir + "/")).root() == explicit_dir);

    test::LogCapture capture;
    CHECK(DiskCache(std::nullopt).root().empty());
    const test::ScopedEnv off("SAPWOOD_DISK_CACHE", "0");
    DiskCache cache{fs::path(explicit_dir)};
    CHECK(cache.root().empty());
    CHECK(cache.disabled_reason() == "SAPWOOD_DISK_CACHE=0");
    test::FakeCompiler compiler;
    CHECK(cache.get_or_compile(test::request_for("a"), compiler)->payload == test::payload_of("a"));
    CHECK(capture.warnings().empty());  // asked for, so nothing to warn of
}

TEST_CASE("disk cache: list tells good from bad, collect takes the least recently used, clear leaves lock files") {
    test::TempDir dir;
    test::FakeCompiler compiler;
    const fs::path root = dir.path();
    const auto path_of = [&](const char* source) {
        return test::entry_path(root, content_digest(test::request_for(source), compiler.identity()));
    };
    {
        DiskCache cache(root);
        for (const char* source : {"a", "b", "c"}) cache.get_or_compile(test::request_for(source), compiler);
    }
    set_age(path_of("a"), 100h);
    set_age(path_of("b"), 200h);
    set_age(path_of("c"), 50h);
    DiskCache cache(root);
    cache.get_or_compile(test::request_for("b"), compiler);  // a hit: now the most recently used

    auto bytes = test::read_bytes(path_of("c"));
    bytes.back() ^= std::byte{1};
    test::write_bytes(path_of("c"), bytes);
    set_age(path_of("c"), 50h);
    int bad = 0;
    const auto entries = cache.list(true);
    REQUIRE(entries.size() == 3);
    for (const CacheEntryInfo& entry : entries) {
        bad += entry.path == path_of("c") && entry.fault == "checksum mismatch";
        if (entry.path != path_of("a")) continue;
        CHECK(entry.fault.empty());
        CHECK(entry.name == "decode<a>");
        CHECK(entry.digest == to_hex(content_digest(test::request_for("a"), compiler.identity())));
        CHECK(entry.resources.registers == 32);
    }
    CHECK(bad == 1);
    CHECK(cache.list(false).size() == 3);

    CHECK(cache.collect(entries[0].bytes) == 2 * entries[0].bytes);
    CHECK(fs::exists(path_of("b")));
    CHECK(cache.clear() == 1);
    CHECK(cache.list(false).empty());
    CHECK(!fs::is_empty(root / "v1" / "locks"));
}

TEST_CASE("disk cache: collection by age takes what was not used for so long, whatever the size") {
    test::TempDir dir;
    test::FakeCompiler compiler;
    const auto path_of = [&](const char* source) {
        return test::entry_path(dir.path(), content_digest(test::request_for(source), compiler.identity()));
    };
    for (const char* source : {"a", "b", "c"}) DiskCache(dir.path()).get_or_compile(test::request_for(source), compiler);
    const std::uint64_t one = DiskCache(dir.path()).list(false)[0].bytes;
    set_age(path_of("a"), 24h * 40);
    set_age(path_of("b"), 24h * 20);
    CHECK(DiskCache(dir.path()).collect(1 << 30, 24h * 30) == one);
    CHECK(!fs::exists(path_of("a")));
    CHECK(DiskCache(dir.path()).collect(one, 24h * 30) == one);  // the size counts as well
    CHECK(!fs::exists(path_of("b")));
    CHECK(DiskCache(dir.path()).collect(1 << 30, 24h * 30) == 0);
    CHECK(fs::exists(path_of("c")));
}

TEST_CASE("disk cache: once a day a publish brings a cache past its cap down to 80 % and sweeps what killed processes left") {
    test::TempDir dir;
    test::FakeCompiler compiler;
    for (int i = 0; i < 10; ++i) DiskCache(dir.path()).get_or_compile(test::request_for(std::to_string(i)), compiler);
    const std::uint64_t one = DiskCache(dir.path()).list(false)[0].bytes;
    const fs::path stale = dir.path() / "v1" / "tmp" / "1-dead-1", fresh = dir.path() / "v1" / "tmp" / "1-live-1";
    test::write_bytes(stale, {});
    test::write_bytes(fresh, {});
    set_age(stale, 2h);

    const DiskCacheOptions capped{30s, 10 * one};
    DiskCache(dir.path(), capped).get_or_compile(test::request_for("x"), compiler);
    CHECK(DiskCache(dir.path()).list(false).size() == 11);  // collected less than a day ago
    CHECK(!fs::exists(stale));
    CHECK(fs::exists(fresh));

    set_age(dir.path() / "v1" / "stamp", 25h);
    DiskCache(dir.path(), capped).get_or_compile(test::request_for("y"), compiler);
    CHECK(DiskCache(dir.path()).list(false).size() == 8);
}

}  // namespace
}  // namespace sapwood::jit
