// SPDX-License-Identifier: Apache-2.0
// One tuning record: what was measured of one bucket, by whom, and what follows from it. JSON text and back; records of one bucket
// join in any order to the same result.
#pragma once

#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "sapwood/tune.h"
#include "tune/bucket.h"
#include "tune/device_facts.h"

namespace sapwood::tune {

/// What the directory of a set of records stands for. `id()` names it: records of another device, code or policy are another set.
struct Environment {
    int sm = 0, sms = 0;
    std::string gpu;     // "NVIDIA H100 80GB HBM3"
    int memory_gib = 0;  // in steps of eight: tells boards of one name apart
    std::string code;    // code_digest() of the kernels
    int epoch = 0;
    std::string policy;      // TunePolicy::name
    std::string id() const;  // 16 hex digits
    bool same_device(const Environment& other) const {
        return sm == other.sm && sms == other.sms && gpu == other.gpu && memory_gib == other.memory_gib;
    }
    bool operator==(const Environment&) const = default;
};
Environment environment_of(const DeviceFacts& device, const TunePolicy& policy);

/// Where timings come from: one entry for each run of the tuner that has timings in a record.
struct Provenance {
    std::string gpu, uuid, driver, nvrtc, throttle, tool, code, date;  // date: "2026-11-21T13:05:00Z"
    int sm = 0, sms = 0, sm_mhz = 0, memory_mhz = 0, power_limit_w = 0;
    int cuda_driver = 0;     // 13000: the version of the driver's interface
    std::string id() const;  // 12 hex digits over all fields
    bool operator==(const Provenance&) const = default;
};

struct Timing {
    TuneCandidate candidate;
    std::string run;   // Provenance::id
    std::string date;  // the provenance's: the later timing of a configuration counts
    std::string rest;  // fields that this version does not know, as JSON; kept
};

/// One problem of a bucket.
struct Measured {
    std::string name;  // of the workload case, for people
    Sizes sizes;
    DecodeConfig default_config;
    double floor_us = 0;
    std::vector<Timing> timings;
    std::string rest;
};

struct Record {
    Bucket bucket;
    std::string policy, code;
    int epoch = 0;
    std::vector<Measured> measured;  // by sizes
    std::map<std::string, Provenance> runs;
    std::string rest;

    /// The configuration for the bucket: see choose_best; over several problems, by the geometric mean of what each loses.
    DecodeConfig best(int sm, const TunePolicy& policy_used) const;
    /// Measured configurations, fastest first, with their time over the default's.
    std::vector<std::pair<DecodeConfig, double>> ranked(int sm) const;
    const Measured* find(const Sizes& sizes) const;
};

/// One timing as JSON, the same text on every machine.
std::string timing_text(const Timing& timing);
std::string to_json(const Record& record, int sm, const TunePolicy& policy);
/// Empty and a reason for what is no record of this schema.
std::optional<Record> record_from(std::string_view json, std::string* fault);
std::string to_json(const Environment& environment);
std::optional<Environment> environment_from(std::string_view json, std::string* fault);

/// Adds what a search found about one problem: timings of the same configuration are replaced.
void add(Record& record, const std::string& name, const Sizes& sizes, const TuneReport& report, const Provenance& provenance);
/// The candidates of an earlier run of this problem, for search().
std::vector<TuneCandidate> known_of(const Record& record, const Sizes& sizes);

/// `other` into `record`, both of one bucket. Associative, commutative, idempotent: of two timings of a configuration on a problem
/// the later counts, and of two of one date the one whose text is greater. `conflicts` gets what the two disagree on.
void merge(Record& record, const Record& other, int sm, const TunePolicy& policy, std::vector<std::string>* conflicts);

}  // namespace sapwood::tune
