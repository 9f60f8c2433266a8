// SPDX-License-Identifier: Apache-2.0
// Layout, little-endian; offsets are from the start of the file:
//   0   8  magic "SWBUNDL\1"
//   8   4  format version        12   4  kernels        16   4  attachments        20   4  zero
//  24   8  bytes of the whole file, footer included      32   8  bytes of the index
//  40  32  BLAKE2b-256 of the first 40 bytes, the template set and the index: what every later read relies on
//  72  64  hex digest of the template set, zero padded
// 136      index: kernels by source digest { source 32, digest of the image 32, target 16, offset 8, bytes 8 }, then attachments by
//          name { digest 32, offset 8, bytes 8, name bytes 4, name }
//  ..      images, each at a multiple of 64, then attachments; zeros between
//  ..  32  footer: BLAKE2b-256 of everything before it
// No time stamp, no host name, no order of insertion: the same contents are the same bytes.
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "base/error.h"
#include "base/publish.h"
#include "jit/bundle.h"
#include "jit/disk_cache.h"
#include "jit/entry_file.h"

namespace sapwood::jit {
namespace {

constexpr char kMagic[8] = {'S', 'W', 'B', 'U', 'N', 'D', 'L', 1};
constexpr std::uint32_t kFormat = 1;
constexpr std::size_t kChecksumAt = 40, kTemplatesAt = 72, kTemplateBytes = 64, kIndexAt = 136, kFooterBytes = 32,
                      kTargetBytes = 16;
constexpr std::uint64_t kMaxIndexBytes = std::uint64_t{256} << 20;

class Writer {
public:
    std::vector<std::byte> bytes;
    template <class T>
    void number(T value) {
        for (std::size_t i = 0; i < sizeof(T); ++i) bytes.push_back(static_cast<std::byte>(value >> (8 * i)));
    }
    void raw(const void* from, std::size_t size) {
        const auto* first = static_cast<const std::byte*>(from);
        bytes.insert(bytes.end(), first, first + size);
    }
    void padded(const std::string& text, std::size_t size) {
        raw(text.data(), text.size());
        bytes.resize(bytes.size() + size - text.size());
    }
    void align() { bytes.resize((bytes.size() + 63) / 64 * 64); }
};

/// Reads that past the end give zeros and are remembered.
class Reader {
public:
    explicit Reader(std::span<const std::byte> bytes) : bytes_(bytes) {}
    template <class T>
    T number() {
        T value = 0;
        const auto from = take(sizeof(T));
        for (std::size_t i = 0; i < from.size(); ++i) value = static_cast<T>(value | (std::to_integer<T>(from[i]) << (8 * i)));
        return value;
    }
    Digest digest() {
        Digest value{};
        const auto from = take(value.size());
        if (!from.empty()) std::memcpy(value.data(), from.data(), from.size());
        return value;
    }
    std::string text(std::size_t size) {
        const auto from = take(size);
        std::string value(reinterpret_cast<const char*>(from.data()), from.size());
        return value.substr(0, value.find('\0'));
    }
    bool sound() const { return sound_; }
    bool at_end() const { return bytes_.empty(); }

private:
    std::span<const std::byte> take(std::size_t size) {
        if (size > bytes_.size()) {
            sound_ = false;
            bytes_ = {};
            return {};
        }
        const auto taken = bytes_.first(size);
        bytes_ = bytes_.subspan(size);
        return taken;
    }
    std::span<const std::byte> bytes_;
    bool sound_ = true;
};

Digest index_checksum(std::span<const std::byte> file, std::size_t index_bytes) {
    Hasher hasher;
    return hasher.raw(file.first(kChecksumAt)).raw(file.subspan(kTemplatesAt, kTemplateBytes + index_bytes)).finish();
}

}  // namespace

std::vector<std::byte> encode_bundle(const BundleContents& contents) {
    std::size_t index_bytes = 0;  // of what Writer puts there below
    index_bytes += contents.kernels.size() * (2 * sizeof(Digest) + kTargetBytes + 16);
    for (const auto& [name, bytes] : contents.attachments) {
        if (name.empty() || name.size() > 1024 || name.find('\0') != std::string::npos)
            raise(ErrorCode::kInvalidArgument, "a bundle's attachment needs a name of 1 to 1024 bytes, not \"" + name + "\"");
        index_bytes += sizeof(Digest) + 20 + name.size();
    }
    if (contents.template_set.empty() || contents.template_set.size() > kTemplateBytes)
        raise(ErrorCode::kInvalidArgument, "a bundle needs the digest of its template set, not \"" + contents.template_set + "\"");
    Writer index, body;
    body.bytes.resize(kIndexAt + index_bytes);  // offsets count from the start of the file
    for (const auto& [source, image] : contents.kernels) {
        std::string fault;
        const auto artifact = decode_entry(image, nullptr, &fault);
        if (artifact == nullptr || artifact->target.size() >= kTargetBytes)
            raise(ErrorCode::kInvalidArgument,
                  "kernel " + to_hex(source) + " cannot go into a bundle: " + (artifact ? "target " + artifact->target : fault));
        body.align();
        const Digest digest = digest_of(image);
        index.raw(source.data(), source.size());
        index.raw(digest.data(), digest.size());
        index.padded(artifact->target, kTargetBytes);
        index.number(std::uint64_t{body.bytes.size()});
        index.number(std::uint64_t{image.size()});
        body.raw(image.data(), image.size());
    }
    for (const auto& [name, bytes] : contents.attachments) {
        body.align();
        const Digest digest = digest_of(bytes);
        index.raw(digest.data(), digest.size());
        index.number(std::uint64_t{body.bytes.size()});
        index.number(std::uint64_t{bytes.size()});
        index.number(static_cast<std::uint32_t>(name.size()));
        index.raw(name.data(), name.size());
        body.raw(bytes.data(), bytes.size());
    }
    Writer head;
    head.raw(kMagic, sizeof kMagic);
    head.number(kFormat);
    head.number(static_cast<std::uint32_t>(contents.kernels.size()));
    head.number(static_cast<std::uint32_t>(contents.attachments.size()));
    head.number(std::uint32_t{0});
    head.number(std::uint64_t{body.bytes.size() + kFooterBytes});
    head.number(std::uint64_t{index.bytes.size()});
    head.bytes.resize(kTemplatesAt);
    head.padded(contents.template_set, kTemplateBytes);
    std::vector<std::byte> file = std::move(body.bytes);
    std::copy(head.bytes.begin(), head.bytes.end(), file.begin());
    std::copy(index.bytes.begin(), index.bytes.end(), file.begin() + kIndexAt);
    const Digest checksum = index_checksum(file, index.bytes.size());
    std::memcpy(file.data() + kChecksumAt, checksum.data(), checksum.size());
    const Digest footer = digest_of(file);
    file.resize(file.size() + kFooterBytes);
    std::memcpy(file.data() + file.size() - kFooterBytes, footer.data(), footer.size());
    return file;
}

std::shared_ptr<const Bundle> Bundle::open(const std::filesystem::path& path, std::string* fault, const Digest* expected) {
    std::shared_ptr<Bundle> bundle(new Bundle);
    std::error_code error;
    bundle->path_ = std::filesystem::absolute(path, error);  // for messages: a later chdir must not make them wrong
    if (error) bundle->path_ = path;
    std::string why = bundle->open_index(expected);
    if (fault != nullptr) *fault = why;
    return why.empty() ? bundle : nullptr;
}

Bundle::~Bundle() {
    if (fd_ >= 0) ::close(fd_);
}

std::string Bundle::open_index(const Digest* expected) {
    fd_ = ::open(path_.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);  // O_NONBLOCK: opening a pipe must not wait for its writer
    if (fd_ < 0) return errno_text(errno);
    struct stat info {};
    if (::fstat(fd_, &info) != 0) return errno_text(errno);
    if (!S_ISREG(info.st_mode)) return "not a regular file";
    bytes_ = static_cast<std::uint64_t>(info.st_size);
    if (bytes_ < kIndexAt + kFooterBytes) return "shorter than its header (" + std::to_string(bytes_) + " bytes)";
    std::vector<std::byte> head(kIndexAt);
    if (std::string fault = read_bytes(0, head); !fault.empty()) return fault;
    if (std::memcmp(head.data(), kMagic, sizeof kMagic) != 0) return "not a bundle (wrong magic)";
    Reader header(std::span<const std::byte>(head).subspan(sizeof kMagic));
    if (const auto format = header.number<std::uint32_t>(); format != kFormat)
        return "format " + std::to_string(format) + "; this library reads " + std::to_string(kFormat);
    const auto kernels = header.number<std::uint32_t>(), attachments = header.number<std::uint32_t>();
    header.number<std::uint32_t>();
    const auto whole = header.number<std::uint64_t>(), index_bytes = header.number<std::uint64_t>();
    if (whole != bytes_) return "is " + std::to_string(bytes_) + " bytes long where its header says " + std::to_string(whole);
    if (index_bytes > kMaxIndexBytes || index_bytes > bytes_ - kIndexAt - kFooterBytes) return "index larger than the file";
    head.resize(kIndexAt + index_bytes);
    if (std::string fault = read_bytes(kIndexAt, std::span<std::byte>(head).subspan(kIndexAt)); !fault.empty()) return fault;
    const Digest checksum = index_checksum(head, index_bytes);
    if (std::memcmp(head.data() + kChecksumAt, checksum.data(), checksum.size()) != 0)
        return "checksum of the index does not match";
    if (std::string fault = read_bytes(bytes_ - kFooterBytes, std::as_writable_bytes(std::span(digest_))); !fault.empty())
        return fault;
    template_set_ = Reader(std::span<const std::byte>(head).subspan(kTemplatesAt)).text(kTemplateBytes);

    Reader index(std::span<const std::byte>(head).subspan(kIndexAt));
    const auto inside = [&](const auto& part) { return part.offset <= bytes_ && part.bytes <= bytes_ - part.offset; };
    for (std::uint32_t i = 0; i < kernels && index.sound(); ++i) {
        BundleEntry entry;
        entry.source = index.digest();
        entry.image = index.digest();
        entry.target = index.text(kTargetBytes);
        entry.offset = index.number<std::uint64_t>();
        entry.bytes = index.number<std::uint64_t>();
        if (!inside(entry) || entry.bytes > kMaxEntryBytes) return "kernel " + std::to_string(i) + " lies outside the file";
        if (!entries_.empty() && !(entries_.back().source < entry.source)) return "kernels are not in order";
        entries_.push_back(std::move(entry));
    }
    for (std::uint32_t i = 0; i < attachments && index.sound(); ++i) {
        BundleAttachment attachment;
        attachment.digest = index.digest();
        attachment.offset = index.number<std::uint64_t>();
        attachment.bytes = index.number<std::uint64_t>();
        attachment.name = index.text(index.number<std::uint32_t>());
        if (!inside(attachment)) return "attachment " + attachment.name + " lies outside the file";
        attachments_.push_back(std::move(attachment));
    }
    if (!index.sound() || !index.at_end()) return "index does not hold what the header says";
    if (expected == nullptr) return {};
    Digest found{};
    if (std::string fault = digest_of_file(found); !fault.empty()) return fault;
    if (found != digest_) return "digest " + to_hex(found) + " is not the footer's " + to_hex(digest_);
    if (found != *expected) return "digest " + to_hex(found) + " is not the expected " + to_hex(*expected);
    return {};
}

/// pread, no mmap: a file cut short on a network filesystem would turn a mapped read into SIGBUS.
std::string Bundle::read_bytes(std::uint64_t offset, std::span<std::byte> to) const {
    while (!to.empty()) {
        const ssize_t got = ::pread(fd_, to.data(), std::min<std::size_t>(to.size(), 1u << 30), static_cast<off_t>(offset));
        if (got < 0 && errno == EINTR) continue;
        if (got < 0) return errno_text(errno);
        if (got == 0) return "cut short while in use";
        offset += static_cast<std::uint64_t>(got);
        to = to.subspan(static_cast<std::size_t>(got));
    }
    return {};
}

std::string Bundle::digest_of_file(Digest& digest) const {
    Hasher hasher;
    std::vector<std::byte> buffer(1 << 20);
    for (std::uint64_t at = 0, end = bytes_ - kFooterBytes; at < end;) {
        const auto part =
            std::span<std::byte>(buffer).first(static_cast<std::size_t>(std::min<std::uint64_t>(buffer.size(), end - at)));
        if (std::string fault = read_bytes(at, part); !fault.empty()) return fault;
        hasher.raw(part);
        at += part.size();
    }
    digest = hasher.finish();
    return {};
}

std::optional<std::vector<std::byte>> Bundle::read_checked(std::uint64_t offset, std::uint64_t bytes, const Digest& digest,
                                                           std::string* fault) const {
    std::vector<std::byte> part(static_cast<std::size_t>(bytes));
    std::string why = read_bytes(offset, part);
    if (why.empty() && digest_of(part) != digest) why = "checksum mismatch";
    if (fault != nullptr) *fault = why;
    if (!why.empty()) return std::nullopt;
    return part;
}

}  // namespace sapwood::jit
