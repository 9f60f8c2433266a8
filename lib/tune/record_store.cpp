// SPDX-License-Identifier: Apache-2.0
#include "tune/record_store.h"

#include <algorithm>
#include <fstream>
#include <iterator>
#include <map>

#include "base/error.h"
#include "base/publish.h"
#include "tune/database.h"

namespace sapwood::tune {
namespace {

namespace fs = std::filesystem;

constexpr std::uintmax_t kLargest = 16 << 20;  // of a record: beyond it, not ours

std::optional<std::string> text_of(const fs::path& file, std::string* fault) {
    std::error_code error;
    const auto size = fs::file_size(file, error);
    std::ifstream in(file, std::ios::binary);
    if (error || !in || size > kLargest) {
        *fault = error ? error.message() : !in ? "cannot be opened" : "is larger than a record";
        return std::nullopt;
    }
    return std::string(std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>());
}

template <class Parse>
auto read(const fs::path& file, std::vector<std::string>* faults, const Parse& parse)
    -> decltype(parse(std::string_view(), nullptr)) {
    std::string fault;
    if (const auto text = text_of(file, &fault))
        if (auto value = parse(*text, &fault)) return value;
    if (faults != nullptr) faults->push_back(file.string() + ": " + fault);
    return std::nullopt;
}

std::vector<fs::path> sorted(const fs::path& directory) {
    std::vector<fs::path> paths;
    std::error_code error;
    for (fs::directory_iterator it(directory, error), end; !error && it != end; it.increment(error)) paths.push_back(it->path());
    std::sort(paths.begin(), paths.end());
    return paths;
}

fs::path entry(const fs::path& environment, const Bucket& bucket) {
    return environment / "entries" / family_name(static_cast<Family>(bucket.family)) / (key24(bucket) + ".json");
}

}  // namespace

std::vector<Environment> RecordStore::environments(std::vector<std::string>* faults) const {
    std::vector<Environment> found;
    for (const fs::path& path : sorted(directory_)) {
        std::error_code error;
        if (!fs::exists(path / "manifest.json", error)) continue;
        const auto environment = read(path / "manifest.json", faults, environment_from);
        if (!environment) continue;
        if (environment->id() == path.filename()) {
            found.push_back(*environment);
        } else if (faults != nullptr) {
            faults->push_back(path.string() + ": its manifest describes " + environment->id() + "; was it renamed?");
        }
    }
    return found;
}

std::vector<Record> RecordStore::records(const Environment& environment, std::vector<std::string>* faults) const {
    std::vector<Record> found;
    std::vector<fs::path> paths;
    for (const Family family : kTunedFamilies) {
        for (const fs::path& path : sorted(of(environment) / "entries" / family_name(family))) paths.push_back(path);
    }
    for (const fs::path& path : paths) {
        if (path.extension() != ".json") continue;
        auto record = read(path, faults, record_from);
        if (!record) continue;
        if (key24(record->bucket) == path.stem()) {
            found.push_back(std::move(*record));
        } else if (faults != nullptr) {
            faults->push_back(path.string() + ": holds the bucket " + record->bucket.to_string());
        }
    }
    return found;
}

std::optional<Record> RecordStore::load(const Environment& environment, const Bucket& bucket) const {
    auto record = read(entry(of(environment), bucket), nullptr, record_from);
    if (record && record->bucket != bucket) return std::nullopt;
    return record;
}

void RecordStore::publish(const fs::path& target, const std::string& text) const {
    // Tuning records are data that people share, not code: readable by all.
    const PublishResult result =
        publish_file(directory_, target, std::as_bytes(std::span(text)), {.file_mode = 0644, .dir_mode = 0755});
    if (!result)
        raise(ErrorCode::kIo, "the tuning record was not stored: " + result.text() + "; choose another directory with --db");
}

void RecordStore::save(const Environment& environment, const Record& record, const TunePolicy& policy) const {
    const fs::path manifest = of(environment) / "manifest.json";
    std::error_code error;
    if (!fs::exists(manifest, error)) publish(manifest, to_json(environment));
    publish(entry(of(environment), record.bucket), to_json(record, environment.sm, policy));
}

void RecordStore::save_index(const Environment& environment, const TunePolicy& policy) const {
    publish(of(environment) / "index.json", index_text(environment, records(environment), policy));
}

MergeReport merge_databases(std::span<const fs::path> inputs, const fs::path& out, const TunePolicy& policy) {
    MergeReport report;
    struct Set {
        Environment environment;
        std::map<Bucket, Record> records;
    };
    std::map<std::string, Set> sets;
    for (const fs::path& input : inputs) {
        std::error_code error;
        if (!fs::is_directory(input, error))
            raise(ErrorCode::kIo,
                  input.string() + " is no tuning database: a directory that `sapwood tune --db` wrote was expected");
        const RecordStore store(input);
        const auto environments = store.environments(&report.faults);
        if (environments.empty())
            raise(ErrorCode::kIo, input.string() + " holds no environment of a tuning database (<16 digits>/manifest.json)" +
                                      (report.faults.empty() ? "" : "; " + report.faults.back()));
        for (const Environment& environment : environments) {
            Set& set = sets[environment.id()];
            set.environment = environment;
            for (Record& record : store.records(environment, &report.faults)) {
                const auto [at, fresh] = set.records.try_emplace(record.bucket, record);
                if (fresh) continue;
                ++report.joined;
                merge(at->second, record, environment.sm, policy, &report.conflicts);
            }
        }
    }
    const RecordStore to(out);
    for (const auto& [id, set] : sets) {
        for (const auto& [bucket, record] : set.records) to.save(set.environment, record, policy);
        to.save_index(set.environment, policy);
        ++report.environments;
        report.records += set.records.size();
    }
    return report;
}

}  // namespace sapwood::tune
