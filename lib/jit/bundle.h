// SPDX-License-Identifier: Apache-2.0
// A read-only file of compiled kernels (`.swb`) that works with the driver alone: no compiler, no writable disk. Layout in
// bundle_file.cpp. Kernels are found by the digest of everything but the compiler's build, so that a bundle serves on machines that
// have no NVRTC, or another one. Attachments are bytes by name; the bundle never looks inside.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "base/digest.h"
#include "jit/artifact.h"

namespace sapwood::jit {

/// Everything in a bundle, in memory: what is packed, merged and taken apart.
struct BundleContents {
    std::string template_set;                                   // hex digest of the templates that the kernels were made of
    std::map<Digest, std::vector<std::byte>> kernels;           // by source digest: complete entry images
    std::map<std::string, std::vector<std::byte>> attachments;  // by name, e.g. "tune/decode/….json"

    /// Adds a kernel under content_digest(request, compiler family). What differs from one compile of the same source to the next
    /// (the time it took) is left out, so that the same kernels give the same bytes.
    void add(const Digest& source, Artifact artifact, const Digest& entry);
};

/// The file. The same contents give the same bytes on every machine. Throws kInvalidArgument for contents that no bundle can hold.
std::vector<std::byte> encode_bundle(const BundleContents& contents);

struct BundleEntry {
    Digest source{};  // content digest without the compiler's build
    Digest image{};   // BLAKE2b-256 of the entry image
    std::string target;
    std::uint64_t offset = 0, bytes = 0;
};

struct BundleAttachment {
    std::string name;
    Digest digest{};
    std::uint64_t offset = 0, bytes = 0;
};

class Bundle {
public:
    /// Opens and checks header and index: enough for every later read() to be verified against them. With `expected` the whole file
    /// is read and its digest compared. Null, with the reason in `fault`, for what is no sound bundle. Never throws for a bad file.
    static std::shared_ptr<const Bundle> open(const std::filesystem::path& path, std::string* fault,
                                              const Digest* expected = nullptr);
    ~Bundle();
    Bundle(const Bundle&) = delete;
    Bundle& operator=(const Bundle&) = delete;

    const std::filesystem::path& path() const noexcept { return path_; }
    const std::string& template_set() const noexcept { return template_set_; }
    const Digest& digest() const noexcept { return digest_; }  // of everything but itself, as the footer says; to be pinned
    std::span<const BundleEntry> entries() const noexcept { return entries_; }
    std::span<const BundleAttachment> attachments() const noexcept { return attachments_; }

    const BundleEntry* find(const Digest& source) const noexcept;
    /// Reads and verifies one kernel; null, with the reason in `fault`, if it is damaged. Thread-safe.
    std::shared_ptr<const Artifact> read(const BundleEntry& entry, std::string* fault) const;
    std::optional<std::vector<std::byte>> read(const BundleAttachment& attachment, std::string* fault) const;
    /// Every byte against the footer and every kernel by itself: one text a fault.
    std::vector<std::string> verify() const;
    /// Throws kIo naming the file if any part is damaged.
    BundleContents contents() const;

private:
    Bundle() = default;
    std::string open_index(const Digest* expected);
    std::string read_bytes(std::uint64_t offset, std::span<std::byte> to) const;
    std::string digest_of_file(Digest& digest) const;
    std::optional<std::vector<std::byte>> read_checked(std::uint64_t offset, std::uint64_t bytes, const Digest& digest,
                                                       std::string* fault) const;

    std::filesystem::path path_;
    int fd_ = -1;
    std::uint64_t bytes_ = 0;
    std::string template_set_;
    Digest digest_{};
    std::vector<BundleEntry> entries_;           // by source digest
    std::vector<BundleAttachment> attachments_;  // by name
};

/// What becomes of two different attachments of one name; nullopt: a conflict, the first stays.
using MergeAttachments = std::function<std::optional<std::vector<std::byte>>(
    const std::string& name, std::span<const std::byte> first, std::span<const std::byte> second)>;

struct MergedBundle {
    BundleContents contents;
    std::vector<std::string> conflicts;  // what two inputs had differently, and which of them was taken
};

/// The union of bundles of one template set. Where two hold different images of one source (two compiler builds) the first stays
/// and the conflict is listed, so merging is associative. Throws kInvalidArgument if the template sets differ.
MergedBundle merge_bundles(std::span<const BundleContents> bundles, const MergeAttachments& attachments = {});

}  // namespace sapwood::jit
