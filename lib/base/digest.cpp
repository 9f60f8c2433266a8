// SPDX-License-Identifier: Apache-2.0
#include "base/digest.h"

#include <blake2.h>

namespace sapwood {
namespace {

void update(blake2b_state& state, const void* bytes, std::size_t size) {
    if (size != 0) blake2b_update(&state, static_cast<const std::uint8_t*>(bytes), size);  // data() of an empty span may be null
}

}  // namespace

struct Hasher::State {
    blake2b_state blake;
};

Hasher::Hasher() : state_(std::make_unique<State>()) { blake2b_init(&state_->blake, sizeof(Digest)); }
Hasher::~Hasher() = default;

Hasher& Hasher::field(std::uint16_t tag, std::string_view bytes) {
    std::array<std::uint8_t, 10> prefix;  // little-endian on every machine: digests travel between them
    prefix[0] = static_cast<std::uint8_t>(tag);
    prefix[1] = static_cast<std::uint8_t>(tag >> 8);
    for (int i = 0; i < 8; ++i) prefix[2 + i] = static_cast<std::uint8_t>(std::uint64_t{bytes.size()} >> (8 * i));
    update(state_->blake, prefix.data(), prefix.size());
    update(state_->blake, bytes.data(), bytes.size());
    return *this;
}

Hasher& Hasher::raw(std::span<const std::byte> bytes) {
    update(state_->blake, bytes.data(), bytes.size());
    return *this;
}

Digest Hasher::finish() {
    Digest digest;
    blake2b_final(&state_->blake, digest.data(), digest.size());
    return digest;
}

Digest digest_of(std::span<const std::byte> bytes) {
    Hasher hasher;
    return hasher.raw(bytes).finish();
}

std::string to_hex(const Digest& digest) {
    constexpr char kDigits[] = "0123456789abcdef";
    std::string text;
    text.reserve(2 * digest.size());
    for (const std::uint8_t byte : digest) {
        text += kDigits[byte >> 4];
        text += kDigits[byte & 15];
    }
    return text;
}

std::optional<Digest> parse_digest(std::string_view hex) {
    const auto value = [](char c) { return c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1; };
    Digest digest{};
    if (hex.size() != 2 * digest.size()) return std::nullopt;
    for (std::size_t i = 0; i < digest.size(); ++i) {
        const int high = value(hex[2 * i]), low = value(hex[2 * i + 1]);
        if (high < 0 || low < 0) return std::nullopt;
        digest[i] = static_cast<std::uint8_t>(high << 4 | low);
    }
    return digest;
}

}  // namespace sapwood
