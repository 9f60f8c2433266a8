// SPDX-License-Identifier: Apache-2.0
// Choices by bucket, in memory: what an engine asks while it plans. Built once, then only read; a look-up is a hash of sixteen
// bytes, a near one a walk over the buckets of the same code.
#pragma once

#include <filesystem>
#include <functional>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "tune/record.h"

namespace sapwood::tune {

/// What a record comes to.
struct Choice {
    DecodeConfig best;
    std::vector<DecodeConfig> ranked;  // measured, fastest first: for callers that fix some fields
};

struct Lookup {
    TuneMatch match = TuneMatch::fallback;
    DecodeConfig config;  // of a match
    Bucket bucket;        // that it was found under
    bool embedded = false;
    std::string rejected;  // why a record that was found cannot be used here; then it is a fallback
};

/// An index.json that came with something else, such as a bundle of kernels.
struct ShippedIndex {
    std::string origin, text;
};

class Database {
public:
    /// For one device: the user's records in `directory` (empty: none), then what is shipped, then what is embedded.
    Database(const DeviceFacts& device, const std::filesystem::path& directory, bool with_embedded = true,
             std::span<const ShippedIndex> shipped = {});

    /// Exact on this GPU, near on this GPU, then the same of another GPU of this SM; the user's database before the embedded one.
    /// `fixed`: fields that the caller has set; only a configuration that agrees with them is taken. `problem` is complete.
    Lookup find(const Bucket& bucket, const DecodeProblem& problem, const DecodeConfig& fixed) const;
    Lookup find(const Bucket& bucket, const PackedProblem& problem, const DecodeConfig& fixed) const;

    /// Over every choice, so that ranks can compare what they would do: equal digests, equal choices.
    std::string digest() const;
    std::size_t size() const noexcept;
    const std::vector<std::string>& faults() const noexcept { return faults_; }  // records that could not be read

    /// What to say if the user's records were measured with another driver: they are used all the same. Empty if not.
    const std::string& other_driver() const noexcept { return other_driver_; }

private:
    using Choices = std::unordered_map<Bucket, Choice, BucketHash>;
    struct Source {
        Environment environment;
        bool embedded = false, same_device = false;  // embedded: or shipped
        Choices choices;
    };
    void add_directory(const std::filesystem::path& directory);
    void add_shipped(const std::string& origin, std::string_view text);
    void add(Source source);
    /// Why a configuration cannot run the problem on this device; empty if it can.
    using Legality = std::function<std::string(const DecodeConfig&)>;
    Lookup find_legal(const Bucket& bucket, const Legality& why_illegal, const DecodeConfig& fixed) const;
    bool take(const Choice& choice, const Legality& why_illegal, const DecodeConfig& fixed, Lookup& lookup) const;

    DeviceFacts device_;
    std::vector<Source> sources_;  // in order of precedence
    std::vector<std::string> faults_;
    std::string other_driver_;
};

/// The choices of a set of records as one small JSON text, and back.
std::string index_text(const Environment& environment, std::span<const Record> records, const TunePolicy& policy);
bool parse_index(std::string_view text, Environment& environment, std::unordered_map<Bucket, Choice, BucketHash>& choices,
                 std::string* fault);

}  // namespace sapwood::tune
