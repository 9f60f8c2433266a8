// SPDX-License-Identifier: Apache-2.0
// A tuning database on disk: <dir>/<environment>/manifest.json says what the 16 digits mean, entries/<family>/<key24>.json holds
// one bucket each, published by rename. No failure to read is an exception: a damaged record is one that is not there.
#pragma once

#include <filesystem>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "tune/record.h"

namespace sapwood::tune {

class RecordStore {
public:
    explicit RecordStore(std::filesystem::path directory) : directory_(std::move(directory)) {}
    const std::filesystem::path& directory() const noexcept { return directory_; }

    /// Environments with a readable manifest, in the order of their ids. `faults` gets what is damaged, a line each.
    std::vector<Environment> environments(std::vector<std::string>* faults = nullptr) const;
    std::vector<Record> records(const Environment& environment, std::vector<std::string>* faults = nullptr) const;
    std::optional<Record> load(const Environment& environment, const Bucket& bucket) const;

    /// Publishes record and manifest; throws kIo naming path and reason.
    void save(const Environment& environment, const Record& record, const TunePolicy& policy) const;
    /// <dir>/<environment>/index.json: the choices alone, small enough to be embedded (tuning/<board>/index.json).
    void save_index(const Environment& environment, const TunePolicy& policy) const;

private:
    std::filesystem::path of(const Environment& environment) const { return directory_ / environment.id(); }
    void publish(const std::filesystem::path& target, const std::string& text) const;
    std::filesystem::path directory_;
};

struct MergeReport {
    std::size_t environments = 0, records = 0, joined = 0;  // joined: records that more than one input had
    std::vector<std::string> conflicts;                     // buckets whose inputs choose differently
    std::vector<std::string> faults;                        // records that could not be read, left out
};

/// Joins tuning databases into `out`, which may be one of them. The result does not depend on the order of the inputs.
/// Throws kIo if an input is no directory or nothing in it can be read, or `out` cannot be written.
MergeReport merge_databases(std::span<const std::filesystem::path> inputs, const std::filesystem::path& out,
                            const TunePolicy& policy = {});

}  // namespace sapwood::tune
