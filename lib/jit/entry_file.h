// SPDX-License-Identifier: Apache-2.0
// Private to jit: what the object store needs of the entry format beyond encode_entry and decode_entry.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "base/digest.h"
#include "jit/artifact.h"

namespace sapwood::jit {

inline constexpr std::uint64_t kMaxEntryBytes = std::uint64_t{64} << 20;

/// Empty when the payload is what its kind says: an ELF file for the machine that will run it. The CUDA driver takes some garbage
/// for an empty module, so this is checked here.
std::string payload_fault(PayloadKind kind, std::span<const std::byte> payload);

/// Header and metadata only, without payload and checksum: for listings.
std::shared_ptr<const Artifact> decode_metadata(std::span<const std::byte> file, std::string* fault);

/// A reference: the digest of an entry under the digest of its source, checksummed, so that no damaged one names another kernel.
std::vector<std::byte> encode_reference(const Digest& source, const Digest& entry);
std::optional<Digest> decode_reference(std::span<const std::byte> file, const Digest& source);

struct EntryBytes {
    std::vector<std::byte> bytes;
    std::int64_t mtime = 0;
    int error = 0;      // errno: it could not be opened or read, which says nothing of what is in it
    std::string fault;  // it can never be an entry: a directory, a link, a pipe, too large
};

/// Plain reads, no mmap: a file cut short on a network filesystem would turn a mapped read into SIGBUS.
EntryBytes read_entry_file(const std::filesystem::path& path);

}  // namespace sapwood::jit
