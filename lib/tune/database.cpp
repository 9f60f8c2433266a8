// SPDX-License-Identifier: Apache-2.0
#include "tune/database.h"

#include <algorithm>
#include <map>

#include "base/digest.h"
#include "plan/packed_tiles.h"
#include "plan/tiles.h"
#include "tune/config_fields.h"
#include "tune/embedded.h"
#include "tune/epoch.h"
#include "tune/packed_candidates.h"
#include "tune/record_store.h"

namespace sapwood::tune {
namespace {

std::string version(int number) { return std::to_string(number / 1000) + "." + std::to_string(number % 1000 / 10); }

}  // namespace

Database::Database(const DeviceFacts& device, const std::filesystem::path& directory, bool with_embedded,
                   std::span<const ShippedIndex> shipped)
    : device_(device) {
    if (!directory.empty()) add_directory(directory);
    for (const ShippedIndex& index : shipped) add_shipped(index.origin, index.text);
    if (with_embedded) {
        for (const EmbeddedFile& file : embedded_tuning()) {
            if (file.path.ends_with("index.json")) add_shipped("embedded " + std::string(file.path), file.text);
        }
    }
    // This GPU's before another's; of those the user's first, then in the order of above; other GPUs' like-sized ones first.
    std::stable_sort(sources_.begin(), sources_.end(), [&](const Source& a, const Source& b) {
        const auto key = [&](const Source& s) {
            return std::make_tuple(!s.same_device, s.embedded, s.environment.sms != device_.limits.sms,
                                   s.same_device ? std::string() : s.environment.id());
        };
        return key(a) < key(b);
    });
}

void Database::add(Source source) {
    if (source.environment.sm != device_.limits.sm || source.choices.empty()) return;
    source.same_device = source.environment.same_device(environment_of(device_, {}));
    sources_.push_back(std::move(source));
}

void Database::add_directory(const std::filesystem::path& directory) {
    const RecordStore store(directory);
    for (const Environment& environment : store.environments(&faults_)) {
        // Kernels have changed since: hints for the tuner, no results.
        if (environment.sm != device_.limits.sm || environment.code != code_digest()) continue;
        Source source = {.environment = environment};
        TunePolicy policy;
        for (const Record& record : store.records(environment, &faults_)) {
            Choice choice = {.best = record.best(environment.sm, policy)};
            for (const auto& [config, ratio] : record.ranked(environment.sm)) choice.ranked.push_back(config);
            source.choices.emplace(record.bucket, std::move(choice));
            for (const auto& [id, run] : record.runs) {
                if (run.cuda_driver == device_.cuda_driver || run.cuda_driver == 0 || device_.cuda_driver == 0) continue;
                other_driver_ = "tuning records in " + directory.string() + " were measured with a driver for CUDA " +
                                version(run.cuda_driver) + ", this one is for " + version(device_.cuda_driver) +
                                "; they are used, tune again to be sure";
            }
        }
        add(std::move(source));
    }
}

void Database::add_shipped(const std::string& origin, std::string_view text) {
    Source source;
    source.embedded = true;
    std::string fault;
    if (!parse_index(text, source.environment, source.choices, &fault)) {
        faults_.push_back(origin + ": " + fault);
        return;
    }
    // Made for these very kernels, or for kernels of which the same configurations win.
    if (source.environment.code == code_digest() || source.environment.epoch == tuning_epoch().number) add(std::move(source));
}

bool Database::take(const Choice& choice, const Legality& why_illegal, const DecodeConfig& fixed, Lookup& lookup) const {
    const auto usable = [&](const DecodeConfig& config) {
        if (!agrees(config, fixed)) return false;
        std::string why = why_illegal(config);
        if (why.empty()) {
            lookup.config = config;
            return true;
        }
        if (lookup.rejected.empty()) lookup.rejected = config_text(config) + ": " + why;
        return false;
    };
    if (usable(choice.best)) return true;
    // An illegal best makes the record void: what else it says was compared on other limits. Fixed fields take the fastest that
    // agrees.
    return lookup.rejected.empty() && std::any_of(choice.ranked.begin(), choice.ranked.end(), usable);
}

Lookup Database::find(const Bucket& bucket, const DecodeProblem& problem, const DecodeConfig& fixed) const {
    return find_legal(
        bucket, [&](const DecodeConfig& config) { return why_illegal(problem, config, device_.limits); }, fixed);
}

Lookup Database::find(const Bucket& bucket, const PackedProblem& problem, const DecodeConfig& fixed) const {
    const PackedPass pass(static_cast<Family>(bucket.family), problem);
    return find_legal(
        bucket, [&](const DecodeConfig& config) { return pass.why_illegal(config, device_.limits); }, fixed);
}

Lookup Database::find_legal(const Bucket& bucket, const Legality& why_illegal, const DecodeConfig& fixed) const {
    Lookup lookup;
    for (const bool same_device : {true, false}) {
        for (const bool exact : {true, false}) {
            for (const Source& source : sources_) {
                if (source.same_device != same_device) continue;
                const std::pair<const Bucket, Choice>* found = nullptr;
                if (exact) {
                    const auto at = source.choices.find(bucket);
                    if (at != source.choices.end()) found = &*at;
                } else {
                    int nearest = kNearest + 1;
                    for (const auto& each : source.choices) {
                        if (!same_code(each.first, bucket)) continue;
                        const int d = distance(each.first, bucket);
                        // Of equally near ones always the same, whatever the order of the table.
                        if (d < nearest || (d == nearest && found != nullptr && each.first < found->first))
                            nearest = d, found = &each;
                    }
                }
                if (found == nullptr || !take(found->second, why_illegal, fixed, lookup)) continue;
                lookup.match = !same_device ? TuneMatch::other_gpu : exact ? TuneMatch::exact : TuneMatch::near_bucket;
                lookup.bucket = found->first;
                lookup.embedded = source.embedded;
                lookup.rejected.clear();
                return lookup;
            }
        }
    }
    return lookup;
}

std::size_t Database::size() const noexcept {
    std::size_t count = 0;
    for (const Source& source : sources_) count += source.choices.size();
    return count;
}

std::string Database::digest() const {
    Hasher hasher;
    for (const Source& source : sources_) {
        hasher.field(1, source.environment.id());
        std::map<Bucket, const Choice*> in_order;
        for (const auto& [bucket, choice] : source.choices) in_order.emplace(bucket, &choice);
        for (const auto& [bucket, choice] : in_order) hasher.field(2, bucket.to_string()).field(3, choice->best.to_string());
    }
    return to_hex(hasher.finish()).substr(0, 16);
}

}  // namespace sapwood::tune
