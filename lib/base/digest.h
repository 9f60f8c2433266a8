// SPDX-License-Identifier: Apache-2.0
// BLAKE2b-256 (libb2): content addresses of kernels. `b2sum -l 256` prints the same.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>

namespace sapwood {

using Digest = std::array<std::uint8_t, 32>;

std::string to_hex(const Digest& digest);
std::optional<Digest> parse_digest(std::string_view hex);  // the reverse; nullopt for anything else

/// Hash of a sequence of (tag, length, bytes) fields, so that no two different sequences concatenate to the same bytes.
class Hasher {
public:
    Hasher();
    ~Hasher();
    Hasher(const Hasher&) = delete;
    Hasher& operator=(const Hasher&) = delete;
    Hasher& field(std::uint16_t tag, std::string_view bytes);
    Hasher& raw(std::span<const std::byte> bytes);  // untagged, for whole files
    Digest finish();

private:
    struct State;
    std::unique_ptr<State> state_;
};

Digest digest_of(std::span<const std::byte> bytes);

}  // namespace sapwood
