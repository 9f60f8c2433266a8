// SPDX-License-Identifier: Apache-2.0
// Layout, little-endian:
//   0   8  magic "SAPWOOD\1"
//   8   4  format version         12  4  offset of the payload, a multiple of 64
//  16  32  content digest: equals the file's name, which catches renamed and copied files
//  48  32  BLAKE2b-256 of every byte of the file but these
//  80   8  payload bytes          88  4  metadata bytes          92  4  payload kind
//  96      metadata (JSON, UTF-8), zeros up to the payload, payload; nothing after it
#include "jit/entry_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstring>
#include <nlohmann/json.hpp>

#include "jit/disk_cache.h"

namespace sapwood::jit {
namespace {

using Bytes = std::span<const std::byte>;
using nlohmann::json;

constexpr char kMagic[8] = {'S', 'A', 'P', 'W', 'O', 'O', 'D', 1};
constexpr std::uint32_t kFormat = 1;
constexpr std::size_t kHeaderBytes = 96, kDigestAt = 16, kChecksumAt = 48, kChecksumEnd = 80;
constexpr std::size_t kMaxLogBytes = 16 << 10;

template <class T>
void put(std::vector<std::byte>& file, std::size_t at, T value) {
    for (std::size_t i = 0; i < sizeof(T); ++i) file[at + i] = static_cast<std::byte>(value >> (8 * i));
}

template <class T>
T take(Bytes file, std::size_t at) {
    T value = 0;
    for (std::size_t i = 0; i < sizeof(T); ++i) value = static_cast<T>(value | (std::to_integer<T>(file[at + i]) << (8 * i)));
    return value;
}

std::uint64_t payload_offset(std::uint64_t metadata_bytes) { return (kHeaderBytes + metadata_bytes + 63) / 64 * 64; }

Digest checksum(Bytes file) {
    Hasher hasher;
    return hasher.raw(file.first(kChecksumAt)).raw(file.subspan(kChecksumEnd)).finish();
}

struct EntryHeader {
    PayloadKind kind = PayloadKind::cubin;
    std::uint64_t payload_bytes = 0;
    std::uint32_t metadata_bytes = 0;
};

std::string header_fault(Bytes file, EntryHeader& header) {
    if (file.size() < kHeaderBytes) return "shorter than its header (" + std::to_string(file.size()) + " bytes)";
    if (std::memcmp(file.data(), kMagic, sizeof kMagic) != 0) return "wrong magic";
    if (const auto format = take<std::uint32_t>(file, 8); format != kFormat) return "format " + std::to_string(format);
    header.payload_bytes = take<std::uint64_t>(file, 80);
    header.metadata_bytes = take<std::uint32_t>(file, 88);
    header.kind = static_cast<PayloadKind>(take<std::uint32_t>(file, 92));
    if (header.kind != PayloadKind::cubin && header.kind != PayloadKind::host_object) return "unknown payload kind";
    const std::uint64_t offset = payload_offset(header.metadata_bytes);
    if (take<std::uint32_t>(file, 12) != offset || header.payload_bytes > kMaxEntryBytes ||
        offset + header.payload_bytes != file.size())
        return "size is not what the header says (" + std::to_string(file.size()) + " bytes)";
    return {};
}

std::string metadata_fault(Bytes file, const EntryHeader& header, Artifact& artifact) {
    const auto* text = reinterpret_cast<const char*>(file.data()) + kHeaderBytes;
    const json meta = json::parse(text, text + header.metadata_bytes, nullptr, /*allow_exceptions=*/false);
    if (!meta.is_object()) return "metadata is not a JSON object";
    try {
        artifact.kind = header.kind;
        artifact.name = meta.at("name").get<std::string>();
        artifact.entry = meta.at("entry").get<std::string>();
        artifact.target = meta.at("target").get<std::string>();
        artifact.compiler = meta.at("compiler").get<std::string>();
        artifact.log = meta.at("log").get<std::string>();
        artifact.compile_ms = meta.at("compile_ms").get<double>();
        artifact.resources.registers = meta.at("registers").get<int>();
        artifact.resources.static_shared = meta.at("static_shared").get<int>();
        artifact.resources.spill_bytes = meta.at("spill_bytes").get<int>();
        artifact.resources.max_threads = meta.at("max_threads").get<int>();
    } catch (const json::exception& error) {
        return std::string("metadata: ") + error.what();
    }
    return {};
}

std::shared_ptr<const Artifact> fail(std::string reason, std::string* fault) {
    if (fault != nullptr) *fault = std::move(reason);
    return nullptr;
}

std::uint16_t this_machine() {
#if defined(__x86_64__)
    return 62;  // EM_X86_64
#elif defined(__aarch64__)
    return 183;  // EM_AARCH64
#else
    return 0;  // not known: any
#endif
}

}  // namespace

std::string payload_fault(PayloadKind kind, Bytes payload) {
    constexpr char kElf64[5] = {0x7f, 'E', 'L', 'F', 2};
    constexpr std::uint16_t kCudaMachine = 190;  // EM_CUDA
    if (payload.empty()) return "empty payload";
    if (payload.size() < 64 || std::memcmp(payload.data(), kElf64, sizeof kElf64) != 0) return "payload is not a 64-bit ELF file";
    const std::uint16_t machine = take<std::uint16_t>(payload, 18);
    const std::uint16_t wanted = kind == PayloadKind::cubin ? kCudaMachine : this_machine();
    if (wanted != 0 && machine != wanted)
        return "payload is for ELF machine " + std::to_string(machine) + ", not " + std::to_string(wanted);
    return {};
}

std::vector<std::byte> encode_entry(const Artifact& artifact, const Digest& digest) {
    const json meta = {
        {"name", artifact.name},
        {"entry", artifact.entry},
        {"target", artifact.target},
        {"compiler", artifact.compiler},
        {"log", artifact.log.substr(0, kMaxLogBytes)},
        {"compile_ms", std::isfinite(artifact.compile_ms) ? artifact.compile_ms : 0},  // JSON has no NaN
        {"registers", artifact.resources.registers},
        {"static_shared", artifact.resources.static_shared},
        {"spill_bytes", artifact.resources.spill_bytes},
        {"max_threads", artifact.resources.max_threads},
    };
    // replace: a compiler log may hold bytes that are not UTF-8, or be cut inside a character.
    const std::string text = meta.dump(-1, ' ', false, json::error_handler_t::replace);
    const std::uint64_t offset = payload_offset(text.size());
    std::vector<std::byte> file(offset + artifact.payload.size());
    std::memcpy(file.data(), kMagic, sizeof kMagic);
    put(file, 8, kFormat);
    put(file, 12, static_cast<std::uint32_t>(offset));
    std::memcpy(file.data() + kDigestAt, digest.data(), digest.size());
    put(file, 80, std::uint64_t{artifact.payload.size()});
    put(file, 88, static_cast<std::uint32_t>(text.size()));
    put(file, 92, static_cast<std::uint32_t>(artifact.kind));
    std::memcpy(file.data() + kHeaderBytes, text.data(), text.size());
    std::copy(artifact.payload.begin(), artifact.payload.end(), file.begin() + static_cast<std::ptrdiff_t>(offset));
    const Digest sum = checksum(file);
    std::memcpy(file.data() + kChecksumAt, sum.data(), sum.size());
    return file;
}

std::shared_ptr<const Artifact> decode_entry(Bytes file, const Digest* expect, std::string* fault) {
    EntryHeader header;
    if (std::string reason = header_fault(file, header); !reason.empty()) return fail(std::move(reason), fault);
    const Digest sum = checksum(file);
    if (std::memcmp(file.data() + kChecksumAt, sum.data(), sum.size()) != 0) return fail("checksum mismatch", fault);
    if (expect != nullptr && std::memcmp(file.data() + kDigestAt, expect->data(), expect->size()) != 0)
        return fail("holds another kernel than its name says", fault);
    const Bytes payload = file.subspan(payload_offset(header.metadata_bytes));
    if (std::string reason = payload_fault(header.kind, payload); !reason.empty()) return fail(std::move(reason), fault);
    auto artifact = std::make_shared<Artifact>();
    if (std::string reason = metadata_fault(file, header, *artifact); !reason.empty()) return fail(std::move(reason), fault);
    artifact->payload.assign(payload.begin(), payload.end());
    if (fault != nullptr) fault->clear();
    return artifact;
}

std::shared_ptr<const Artifact> decode_metadata(Bytes file, std::string* fault) {
    EntryHeader header;
    if (std::string reason = header_fault(file, header); !reason.empty()) return fail(std::move(reason), fault);
    auto artifact = std::make_shared<Artifact>();
    if (std::string reason = metadata_fault(file, header, *artifact); !reason.empty()) return fail(std::move(reason), fault);
    return artifact;
}

std::vector<std::byte> encode_reference(const Digest& source, const Digest& entry) {
    std::vector<std::byte> file;
    const auto append = [&](const Digest& digest) {
        for (const std::uint8_t byte : digest) file.push_back(static_cast<std::byte>(byte));
    };
    append(source);
    append(entry);
    append(Hasher().raw(file).finish());
    return file;
}

std::optional<Digest> decode_reference(Bytes file, const Digest& source) {
    Digest entry{};
    if (file.size() != 3 * entry.size()) return std::nullopt;
    std::memcpy(entry.data(), file.data() + entry.size(), entry.size());
    const std::vector<std::byte> expected = encode_reference(source, entry);
    return std::equal(expected.begin(), expected.end(), file.begin()) ? std::optional(entry) : std::nullopt;
}

EntryBytes read_entry_file(const std::filesystem::path& path) {
    EntryBytes entry;
    // O_NONBLOCK: opening a pipe must not wait for its writer.
    const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
    if (fd < 0) {
        if (errno == ELOOP) {
            entry.fault = "a symbolic link";
        } else {
            entry.error = errno;
        }
        return entry;
    }
    struct stat info {};
    if (::fstat(fd, &info) != 0) {
        entry.error = errno;
    } else if (!S_ISREG(info.st_mode)) {
        entry.fault = "not a regular file";
    } else if (static_cast<std::uint64_t>(info.st_size) > kMaxEntryBytes) {
        entry.fault = "larger than an entry may be (" + std::to_string(info.st_size) + " bytes)";
    } else {
        entry.mtime = info.st_mtime;
        entry.bytes.resize(static_cast<std::size_t>(info.st_size));
        std::size_t have = 0;
        while (have < entry.bytes.size()) {
            const ssize_t got = ::read(fd, entry.bytes.data() + have, entry.bytes.size() - have);
            if (got < 0 && errno == EINTR) continue;
            if (got < 0) entry.error = errno;
            if (got <= 0) break;
            have += static_cast<std::size_t>(got);
        }
        entry.bytes.resize(have);  // cut short meanwhile: the header will not fit, which decode_entry reports
    }
    ::close(fd);
    return entry;
}

}  // namespace sapwood::jit
