// SPDX-License-Identifier: Apache-2.0
// Whatever the disk or another process does, a lookup ends with the right artifact and at most one warning.
#include <doctest/doctest.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/stat.h>

#include <thread>

#include "base/error.h"
#include "support/cache_fixture.h"

namespace sapwood::jit {
namespace {

namespace fs = std::filesystem;
using namespace std::chrono_literals;
using Clock = std::chrono::steady_clock;

constexpr uid_t kNobody = 65534;

struct Faults {
    test::ScopedEnv no_fsync{"SAPWOOD_CACHE_FSYNC", "0"};  // thousands of publishes
    test::TempDir dir;
    fs::path root = dir.path() / "cache";
    test::FakeCompiler compiler;
    CompileRequest request = test::request_for("kernel");
    Digest digest = content_digest(request, compiler.identity());
    fs::path path = test::entry_path(root, digest);

    std::vector<std::byte> publish_good() {
        DiskCache(root).get_or_compile(request, compiler);
        return test::read_bytes(path);
    }

    /// Looks up with what is on disk now. Empty, or what is wrong.
    std::string lookup(Origin expected, CacheCounters* counters = nullptr) {
        DiskCache cache(root);
        Origin origin{};
        const auto artifact = cache.get_or_compile(request, compiler, &origin);
        if (counters != nullptr) *counters = cache.counters();
        if (artifact->payload != test::payload_of("kernel")) return "wrong payload";
        if (origin != expected) return std::string("came from ") + origin_name(origin);
        return {};
    }

    /// A bad entry must be noticed, compiled again and replaced by a good one, without a word above debug.
    std::string heals() {
        CacheCounters counters;
        if (std::string fault = lookup(Origin::compiled, &counters); !fault.empty()) return fault;
        if (counters.corrupt != 1) return "counted corrupt: " + std::to_string(counters.corrupt);
        if (counters.published != 1) return "not published again";
        return lookup(Origin::disk);
    }
};

TEST_CASE_FIXTURE(Faults, "cache faults: an entry truncated at every offset is compiled again") {
    const auto good = publish_good();
    REQUIRE(good.size() > 400);
    test::LogCapture capture;
    for (std::size_t size = 0; size < good.size(); ++size) {
        test::write_bytes(path, std::span(good).first(size));
        const std::string fault = heals();
        CHECK_MESSAGE(fault.empty(), "at " << size << ": " << fault);
    }
    CHECK(capture.warnings().empty());
    CHECK(capture.mentions("discarding cache entry " + path.string()));
}

TEST_CASE_FIXTURE(Faults, "cache faults: a flipped bit anywhere is noticed") {
    auto bytes = publish_good();
    std::uint32_t payload_at = 0;
    std::memcpy(&payload_at, bytes.data() + 12, sizeof payload_at);
    REQUIRE(payload_at < bytes.size());
    test::LogCapture capture;
    // Every bit of the header, one bit of every byte of metadata and padding, one of every third byte of the payload.
    for (std::size_t at = 0; at < bytes.size(); at += at < payload_at ? 1 : 3) {
        for (std::size_t bit = at < 96 ? 0 : at % 8; bit < (at < 96 ? 8 : at % 8 + 1); ++bit) {
            const std::byte kept = bytes[at];
            bytes[at] ^= std::byte{1} << bit;
            test::write_bytes(path, bytes);
            bytes[at] = kept;
            const std::string fault = heals();
            CHECK_MESSAGE(fault.empty(), "byte " << at << " bit " << bit << ": " << fault);
        }
    }
    CHECK(capture.warnings().empty());
}

TEST_CASE_FIXTURE(Faults, "cache faults: what is not the entry: another's file, a link, a pipe, a directory") {
    publish_good();
    test::LogCapture capture;
    SUBCASE("renamed from another kernel") {
        const CompileRequest other = test::request_for("other");
        DiskCache(root).get_or_compile(other, compiler);
        fs::rename(test::entry_path(root, content_digest(other, compiler.identity())), path);
        CHECK(heals() == "");
    }
    SUBCASE("link to a good entry") {
        fs::rename(path, dir.path() / "elsewhere");
        fs::create_symlink(dir.path() / "elsewhere", path);
        CHECK(heals() == "");
    }
    SUBCASE("pipe") {
        fs::remove(path);
        REQUIRE(::mkfifo(path.c_str(), 0600) == 0);
        CHECK(heals() == "");
    }
    SUBCASE("empty directory") {
        fs::remove(path);
        fs::create_directory(path);
        CHECK(heals() == "");
    }
    CHECK(capture.warnings().empty());
}

TEST_CASE_FIXTURE(Faults, "cache faults: an entry that can be neither read nor replaced costs one warning and harms no other") {
    publish_good();
    fs::remove(path);
    fs::create_directories(path / "full");
    CHECK(test::in_child([&]() -> std::string {
              test::LogCapture capture;
              SAPWOOD_NEED(lookup(Origin::compiled) == "");
              SAPWOOD_NEED(lookup(Origin::compiled) == "");
              SAPWOOD_NEED(capture.warnings().size() == 1);
              DiskCache cache(root);
              cache.get_or_compile(test::request_for("other"), compiler);
              SAPWOOD_NEED(cache.counters().published == 1);
              SAPWOOD_NEED(cache.disabled_reason().empty());
              return {};
          }) == "");
}

/// In a child that is not root, so that permissions count. The root belongs to it.
std::string unprivileged(Faults& faults, const std::function<std::string()>& body) {
    return test::in_child([&]() -> std::string {
        fs::permissions(faults.dir.path(), fs::perms::all);
        if (::geteuid() == 0) {
            for (auto& item : fs::recursive_directory_iterator(faults.dir.path()))
                SAPWOOD_NEED(::lchown(item.path().c_str(), kNobody, kNobody) == 0);
            SAPWOOD_NEED(::setgid(kNobody) == 0);
            SAPWOOD_NEED(::setuid(kNobody) == 0);
        }
        return body();
    });
}

TEST_CASE_FIXTURE(Faults, "cache faults: an entry without read permission is replaced") {
    publish_good();
    CHECK(unprivileged(*this, [&]() -> std::string {
              test::LogCapture capture;
              SAPWOOD_NEED(::chmod(path.c_str(), 0) == 0);
              SAPWOOD_NEED(lookup(Origin::compiled) == "");
              SAPWOOD_NEED(lookup(Origin::disk) == "");
              SAPWOOD_NEED(capture.warnings().empty());
              return {};
          }) == "");
}

TEST_CASE_FIXTURE(Faults, "cache faults: a read-only cache still serves, and says once that it cannot grow") {
    publish_good();
    CHECK(unprivileged(*this, [&]() -> std::string {
              test::LogCapture capture;
              std::vector<fs::path> all{root};
              for (auto& item : fs::recursive_directory_iterator(root)) all.push_back(item.path());
              for (const auto& item : all) SAPWOOD_NEED(::chmod(item.c_str(), fs::is_directory(item) ? 0500 : 0400) == 0);
              SAPWOOD_NEED(lookup(Origin::disk) == "");
              SAPWOOD_NEED(capture.warnings().empty());
              DiskCache cache(root);
              for (const char* source : {"new", "newer"})
                  SAPWOOD_NEED(cache.get_or_compile(test::request_for(source), compiler)->payload == test::payload_of(source));
              SAPWOOD_NEED(capture.warnings().size() == 1);
              SAPWOOD_NEED(capture.mentions("errno 13") && capture.mentions(root.string()));
              SAPWOOD_NEED(cache.disabled_reason().find("errno 13") != std::string::npos);
              SAPWOOD_NEED(cache.counters().publish_failures == 1);  // the second is not even tried
              for (const auto& item : all) ::chmod(item.c_str(), 0700);
              return {};
          }) == "");
}

TEST_CASE_FIXTURE(Faults, "cache faults: a full disk") {
    const auto body = [&]() -> std::string {
        // A mount of our own: it goes with this child.
        if (::unshare(::geteuid() == 0 ? CLONE_NEWNS : CLONE_NEWNS | CLONE_NEWUSER) != 0 ||
            ::mount("none", "/", nullptr, MS_REC | MS_PRIVATE, nullptr) != 0 ||
            ::mount("tmpfs", dir.path().c_str(), "tmpfs", 0, "size=64k,mode=700") != 0)
            return "skip";
        test::LogCapture capture;
        compiler.payload_bytes = 20 << 10;  // two fit, the third does not
        DiskCache cache(root);
        for (const char* source : {"a", "b", "c", "d"})
            SAPWOOD_NEED(cache.get_or_compile(test::request_for(source), compiler)->payload == test::payload_of(source, 20 << 10));
        SAPWOOD_NEED(capture.warnings().size() == 1);
        SAPWOOD_NEED(capture.mentions("errno 28"));
        SAPWOOD_NEED(fs::is_empty(root / "v1" / "tmp"));  // the half-written file does not stay to keep the disk full
        for (const CacheEntryInfo& entry : cache.list(true)) SAPWOOD_NEED(entry.fault.empty());
        Origin origin{};
        SAPWOOD_NEED(DiskCache(root).get_or_compile(test::request_for("a"), compiler, &origin) != nullptr);
        SAPWOOD_NEED(origin == Origin::disk);
        return {};
    };
    const std::string fault = test::in_child(body);
    if (fault == "skip") {
        MESSAGE("not run: this user may not mount a tmpfs");
    } else {
        CHECK(fault == "");
    }
}

TEST_CASE_FIXTURE(Faults, "cache faults: past the file size limit nothing is written, and SIGXFSZ does not kill the host") {
    CHECK(test::in_child([&]() -> std::string {
              test::LogCapture capture;
              const rlimit limit{512, 512};
              SAPWOOD_NEED(::setrlimit(RLIMIT_FSIZE, &limit) == 0);
              SAPWOOD_NEED(lookup(Origin::compiled) == "");
              SAPWOOD_NEED(capture.warnings().size() == 1);
              return {};
          }) == "");
}

TEST_CASE_FIXTURE(Faults, "cache faults: files where directories belong") {
    for (const std::string where : {"cache", "cache/v1", "cache/v1/objects", "cache/v1/tmp", "cache/v1/locks"}) {
        const bool harmless = where == "cache/v1/locks";  // only duplicate work is at stake
        const fs::path file = dir.path() / where;
        fs::remove_all(root);
        fs::create_directories(file.parent_path());
        if (fs::exists(root)) fs::permissions(root, fs::perms::owner_all);
        test::write_bytes(file, {});
        const std::string fault = test::in_child([&]() -> std::string {
            test::LogCapture capture;
            SAPWOOD_NEED(lookup(Origin::compiled) == "");
            SAPWOOD_NEED(lookup(harmless ? Origin::disk : Origin::compiled) == "");
            SAPWOOD_NEED(capture.warnings().size() == (harmless ? 0 : 1));
            return {};
        });
        CHECK_MESSAGE(fault.empty(), where << ": " << fault);
    }
}

TEST_CASE_FIXTURE(Faults, "cache faults: a directory that others control is not used, unless trusted") {
    fs::create_directories(root);
    const char* expected = "";
    fs::path given = root;
    SUBCASE("writable by all") {
        fs::permissions(root, fs::perms::all);
        expected = "is writable by others (mode 0777); ignored. chmod 700 or set SAPWOOD_CACHE_DIR";
    }
    SUBCASE("owned by another") {
        if (::geteuid() != 0) return;
        REQUIRE(::chown(root.c_str(), kNobody, kNobody) == 0);
        fs::permissions(root, fs::perms::owner_all);
        expected = "is owned by uid 65534";
    }
    SUBCASE("link, also behind a slash") {
        fs::permissions(root, fs::perms::owner_all);
        given = dir.path() / "link";
        fs::create_symlink(root, given);
        given /= "";
        expected = "is a symbolic link";
    }
    CHECK(test::in_child([&]() -> std::string {
              test::LogCapture capture;
              DiskCache cache(given), again(given);
              SAPWOOD_NEED(cache.root().empty());
              SAPWOOD_NEED(cache.disabled_reason().find(expected) != std::string::npos);
              SAPWOOD_NEED(cache.get_or_compile(request, compiler)->payload == test::payload_of("kernel"));
              SAPWOOD_NEED(capture.warnings().size() == 1 && fs::is_empty(root));
              const test::ScopedEnv trust("SAPWOOD_CACHE_TRUST", "1");
              SAPWOOD_NEED(DiskCache(given).root().empty() == fs::is_symlink(dir.path() / "link"));  // a link stays refused
              return {};
          }) == "");
}

TEST_CASE_FIXTURE(Faults, "cache faults: no home") {
    CHECK(test::in_child([&]() -> std::string {
              for (const char* name : {"HOME", "XDG_CACHE_HOME", "SAPWOOD_CACHE_DIR"}) ::unsetenv(name);
              test::LogCapture capture;
              DiskCache cache{fs::path()}, again{fs::path()};
              SAPWOOD_NEED(cache.get_or_compile(request, compiler)->payload == test::payload_of("kernel"));
              SAPWOOD_NEED(cache.root().empty() && capture.warnings().size() == 1);
              return {};
          }) == "");
}

TEST_CASE_FIXTURE(Faults, "cache faults: the cache removed under a running process grows again") {
    publish_good();
    DiskCache cache(root);
    fs::remove_all(root / "v1");
    test::LogCapture capture;
    cache.get_or_compile(request, compiler);
    CHECK(cache.counters().published == 1);
    CHECK(lookup(Origin::disk) == "");
    CHECK(capture.warnings().empty());
}

TEST_CASE_FIXTURE(Faults, "cache faults: nothing that would not load is published") {
    class TextCompiler : public test::FakeCompiler {
        Artifact compile(const CompileRequest& what) override {
            Artifact artifact = FakeCompiler::compile(what);
            artifact.payload.assign(4096, std::byte{'x'});
            return artifact;
        }
    } text;
    test::FakeCompiler empty;
    empty.payload_bytes = 0;
    const auto entries_after = [&](Compiler& with) {
        DiskCache cache(root);
        cache.get_or_compile(request, with);
        return cache.list(false).size();
    };
    CHECK(entries_after(empty) == 0);
    CHECK(entries_after(text) == 0);
    CHECK(entries_after(compiler) == 1);
}

// Between processes ---------------------------------------------------------------------------------------------------------------

struct Pipe {
    int ends[2];
    Pipe() { REQUIRE(::pipe(ends) == 0); }
    ~Pipe() { ::close(ends[0]), ::close(ends[1]); }
    void signal() const { [[maybe_unused]] const ssize_t n = ::write(ends[1], "x", 1); }
    void wait() const {
        char c;
        [[maybe_unused]] const ssize_t n = ::read(ends[0], &c, 1);
    }
};

TEST_CASE_FIXTURE(Faults, "cache faults: a lock held past the deadline costs a compile, not a hang") {
    publish_good();
    fs::remove(path);
    const fs::path lock_file = root / "v1" / "locks" / (to_hex(digest).substr(0, 2) + ".lock");
    REQUIRE(fs::exists(lock_file));
    Pipe ready;
    const pid_t holder = test::start_child([&] {
        const int fd = ::open(lock_file.c_str(), O_RDWR);
        struct flock whole {};
        whole.l_type = F_WRLCK;
        if (::fcntl(fd, F_OFD_SETLK, &whole) != 0) return 1;
        ready.signal();
        ::pause();
        return 0;
    });
    ready.wait();
    test::LogCapture capture;
    DiskCache cache(root, {300ms, 1 << 30});
    const auto start = Clock::now();
    Origin origin{};
    CHECK(cache.get_or_compile(request, compiler, &origin)->payload == test::payload_of("kernel"));
    const auto waited = Clock::now() - start;
    ::kill(holder, SIGKILL);
    test::finish_child(holder);
    CHECK(origin == Origin::compiled);
    CHECK(cache.counters().lock_timeouts == 1);
    CHECK(cache.counters().published == 1);
    CHECK(waited >= 300ms);
    CHECK(waited < 5s);
    CHECK(capture.warnings().empty());
}

TEST_CASE_FIXTURE(Faults, "cache faults: a process killed while it compiles; the one that waits takes over at once") {
    publish_good();
    fs::remove(path);
    Pipe compiling;
    const pid_t victim = test::start_child([&] {
        test::FakeCompiler endless([&](const CompileRequest&) {
            compiling.signal();
            ::pause();
        });
        DiskCache(root).get_or_compile(request, endless);
        return 0;
    });
    compiling.wait();
    const auto start = Clock::now();
    std::thread killer([&] {
        std::this_thread::sleep_for(200ms);
        ::kill(victim, SIGKILL);
    });
    CacheCounters counters;
    test::LogCapture capture;
    CHECK(lookup(Origin::compiled, &counters) == "");
    const auto waited = Clock::now() - start;
    killer.join();
    test::finish_child(victim);
    CHECK(waited >= 150ms);  // it did wait
    CHECK(waited < 10s);     // and not for the deadline
    CHECK(counters.lock_timeouts == 0);
    CHECK(capture.warnings().empty());
}

TEST_CASE_FIXTURE(Faults, "cache faults: a compiler that throws leaves no lock and no file; other kernels never waited") {
    publish_good();
    fs::remove(path);
    DiskCache cache(root);
    test::FakeCompiler refusing([](const CompileRequest& what) { raise(ErrorCode::kCompileFailed, what.name); });
    CHECK_THROWS_AS(cache.get_or_compile(request, refusing), Error);
    CHECK(cache.list(false).empty());
    CHECK(fs::is_empty(root / "v1" / "tmp"));
    const std::string fault = test::in_child([&]() -> std::string {
        CacheCounters counters;
        SAPWOOD_NEED(lookup(Origin::compiled, &counters) == "");
        SAPWOOD_NEED(counters.lock_timeouts == 0);
        return {};
    });
    CHECK(fault == "");
}

TEST_CASE_FIXTURE(Faults, "cache faults: a child forked in the middle of a compile is not caught in its parent's locks") {
    Pipe compiling, finish;
    test::FakeCompiler slow([&](const CompileRequest&) {
        compiling.signal();
        finish.wait();
    });
    DiskCache cache(root, {200ms, 1 << 30});
    std::thread worker([&] { cache.get_or_compile(request, slow); });
    compiling.wait();
    const std::string fault = test::in_child([&]() -> std::string {
        Origin origin{};
        SAPWOOD_NEED(cache.get_or_compile(request, compiler, &origin)->payload == test::payload_of("kernel"));
        SAPWOOD_NEED(origin == Origin::compiled);
        cache.get_or_compile(request, compiler, &origin);
        SAPWOOD_NEED(origin == Origin::memory);
        return {};
    });
    finish.signal();
    worker.join();
    CHECK(fault == "");
}

TEST_CASE_FIXTURE(Faults, "cache faults: a lock outlives neither its holder nor a child forked while it was held") {
    Pipe end;
    pid_t bystander = 0;
    // The child inherits the descriptor of the lock and keeps it open.
    test::FakeCompiler forking([&](const CompileRequest&) {
        bystander = test::start_child([&] {
            end.wait();
            return 0;
        });
    });
    DiskCache(root).get_or_compile(request, forking);
    fs::remove(path);
    CacheCounters counters;
    const auto start = Clock::now();
    CHECK(lookup(Origin::compiled, &counters) == "");
    CHECK(Clock::now() - start < 10s);
    CHECK(counters.lock_timeouts == 0);
    end.signal();
    CHECK(test::finish_child(bystander) == 0);
}

TEST_CASE_FIXTURE(Faults, "cache faults: sixteen cold processes, four kernels, one directory") {
    constexpr int kProcesses = 16, kKernels = 4;
    Pipe start;
    std::vector<pid_t> children;
    for (int p = 0; p < kProcesses; ++p) {
        children.push_back(test::start_child([&, p] {
            test::LogCapture capture;
            test::FakeCompiler counting([&](const CompileRequest& what) {
                std::ofstream(dir.path() / ("compiled-" + what.source), std::ios::app) << "x" << std::flush;
                std::this_thread::sleep_for(50ms);
            });
            start.wait();
            DiskCache cache(root);
            for (int k = 0; k < kKernels; ++k) {
                const std::string source = "k" + std::to_string((k + p) % kKernels);
                if (cache.get_or_compile(test::request_for(source), counting)->payload != test::payload_of(source)) return 1;
            }
            const CacheCounters counters = cache.counters();
            if (counters.corrupt != 0 || counters.publish_failures != 0) return 2;
            return capture.warnings().empty() ? 0 : 3;
        }));
    }
    for (int p = 0; p < kProcesses; ++p) start.signal();
    for (const pid_t child : children) CHECK(test::finish_child(child) == 0);
    for (int k = 0; k < kKernels; ++k) {
        const auto compiles = fs::file_size(dir.path() / ("compiled-k" + std::to_string(k)));
        CHECK(compiles >= 1);
        CHECK(compiles <= 3);
    }
    const auto entries = DiskCache(root).list(true);
    CHECK(entries.size() == kKernels);
    for (const CacheEntryInfo& entry : entries) CHECK_MESSAGE(entry.fault.empty(), entry.fault);
    CHECK(fs::is_empty(root / "v1" / "tmp"));
}

}  // namespace
}  // namespace sapwood::jit
