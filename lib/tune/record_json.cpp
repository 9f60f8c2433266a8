// SPDX-License-Identifier: Apache-2.0
// Records as JSON. Fields that are not known here are kept as they came, so that an older tool does not cut a newer one's records.
#include <nlohmann/json.hpp>

#include "tune/config_fields.h"
#include "tune/config_json.h"
#include "tune/record.h"

namespace sapwood::tune {
namespace {

using nlohmann::json;
constexpr int kRecordSchema = 1;

/// Takes fields out of an object by name; what is left in the end is what is not known.
class Fields {
public:
    explicit Fields(json object) : object_(std::move(object)) {
        if (!object_.is_object()) throw std::runtime_error("an object was expected, not " + object_.dump().substr(0, 40));
    }
    template <class T>
    void take(const char* name, T& to) {
        if (const auto it = object_.find(name); it != object_.end()) {
            to = it->template get<T>();
            object_.erase(it);
        }
    }
    json take(const char* name) {
        json value;
        take(name, value);
        return value;
    }
    std::string rest() const { return object_.empty() ? std::string() : object_.dump(); }

private:
    json object_;
};

json with(json object, const std::string& rest) {
    if (!rest.empty()) object.update(json::parse(rest));
    return object;
}

json timing_json(const Timing& timing) {
    const TuneCandidate& c = timing.candidate;
    json object = {{"config", config_json(c.config)}, {"status", c.status}};
    if (!c.reason.empty()) object["reason"] = c.reason;
    if (c.samples > 0) object["median_us"] = c.median_us, object["mad_us"] = c.mad_us, object["n"] = c.samples;
    object["smem"] = c.shared_bytes;
    if (c.compiled) object["regs"] = c.registers, object["spill"] = c.spill_bytes;
    if (c.cost_us > 0) object["model_us"] = c.model_us, object["cost_us"] = c.cost_us;
    for (const DecodeConfig& same : c.same) object["same"].push_back(plan_text(same));
    object["run"] = timing.run;
    object["date"] = timing.date;
    return with(std::move(object), timing.rest);
}

Timing timing_from(const json& value) {
    Fields fields(value);
    Timing timing;
    TuneCandidate& c = timing.candidate;
    c.config = config_from(fields.take("config"));
    c.status = "unknown";
    fields.take("status", c.status);
    fields.take("reason", c.reason);
    fields.take("median_us", c.median_us), fields.take("mad_us", c.mad_us), fields.take("n", c.samples);
    fields.take("smem", c.shared_bytes);
    c.registers = -1;
    fields.take("regs", c.registers), fields.take("spill", c.spill_bytes);
    c.compiled = c.registers >= 0;
    c.registers = std::max(0, c.registers);
    fields.take("model_us", c.model_us), fields.take("cost_us", c.cost_us);
    for (const json& same : fields.take("same")) {
        c.same.push_back(c.config);
        if (!parse_plan(c.same.back(), same.get<std::string>())) throw std::runtime_error("\"same\" holds " + same.dump());
    }
    fields.take("run", timing.run);
    fields.take("date", timing.date);
    timing.rest = fields.rest();
    return timing;
}

constexpr std::pair<const char*, std::int64_t Sizes::*> kSizes[] = {
    {"kv_heads", &Sizes::kv_heads},       {"page_size", &Sizes::page_size},
    {"requests", &Sizes::requests},       {"unique_tokens", &Sizes::unique_tokens},
    {"path_tokens", &Sizes::path_tokens}, {"widest", &Sizes::widest},
    {"longest", &Sizes::longest}};

/// But for its timings.
json measured_json(const Measured& measured) {
    json sizes = json::object();
    for (const auto& [name, member] : kSizes) sizes[name] = measured.sizes.*member;
    return with({{"name", measured.name},
                 {"sizes", sizes},
                 {"default", config_json(measured.default_config)},
                 {"floor_us", measured.floor_us}},
                measured.rest);
}

Measured measured_from(const json& value) {
    Fields fields(value);
    Measured measured;
    fields.take("name", measured.name);
    const json sizes = fields.take("sizes");
    for (const auto& [name, member] : kSizes) measured.sizes.*member = sizes.at(name).get<std::int64_t>();
    measured.default_config = config_from(fields.take("default"));
    fields.take("floor_us", measured.floor_us);
    for (const json& timing : fields.take("timings")) measured.timings.push_back(timing_from(timing));
    measured.rest = fields.rest();
    return measured;
}

json provenance_json(const Provenance& p) {
    return {{"gpu", p.gpu},
            {"uuid", p.uuid},
            {"sm", p.sm},
            {"sms", p.sms},
            {"driver", p.driver},
            {"nvrtc", p.nvrtc},
            {"clocks", {{"sm", p.sm_mhz}, {"mem", p.memory_mhz}}},
            {"throttle", p.throttle},
            {"power_limit_w", p.power_limit_w},
            {"cuda_driver", p.cuda_driver},
            {"tool", p.tool},
            {"code", p.code},
            {"date", p.date}};
}

Provenance provenance_from(const json& value) {
    Fields fields(value);
    Provenance p;
    fields.take("gpu", p.gpu), fields.take("uuid", p.uuid), fields.take("sm", p.sm), fields.take("sms", p.sms);
    fields.take("driver", p.driver), fields.take("nvrtc", p.nvrtc), fields.take("throttle", p.throttle);
    fields.take("power_limit_w", p.power_limit_w), fields.take("tool", p.tool), fields.take("code", p.code);
    fields.take("date", p.date), fields.take("cuda_driver", p.cuda_driver);
    if (const json clocks = fields.take("clocks"); clocks.is_object()) {
        p.sm_mhz = clocks.value("sm", 0);
        p.memory_mhz = clocks.value("mem", 0);
    }
    return p;
}

json environment_json(const Environment& e) {
    return {{"schema", kRecordSchema},    {"sm", e.sm},     {"sms", e.sms},     {"gpu", e.gpu},
            {"memory_gib", e.memory_gib}, {"code", e.code}, {"epoch", e.epoch}, {"policy", e.policy}};
}

template <class T, class Parse>
std::optional<T> parsed(std::string_view text, std::string* fault, const Parse& parse) {
    try {
        Fields fields(json::parse(text));
        int schema = 0;
        fields.take("schema", schema);
        if (schema != kRecordSchema)
            throw std::runtime_error("schema " + std::to_string(schema) + ", this version reads " + std::to_string(kRecordSchema));
        return parse(fields);
    } catch (const std::exception& error) {  // whatever is wrong with a file, it is a record that is not there
        if (fault != nullptr) *fault = error.what();
        return std::nullopt;
    }
}

}  // namespace

std::string timing_text(const Timing& timing) { return timing_json(timing).dump(); }

std::string to_json(const Record& record, int sm, const TunePolicy& policy) {
    json runs = json::object();
    for (const auto& [id, provenance] : record.runs) runs[id] = provenance_json(provenance);
    const json head = with({{"schema", kRecordSchema},
                            {"family", family_name(static_cast<Family>(record.bucket.family))},
                            {"bucket", record.bucket.to_string()},
                            {"best", json::parse(record.best(sm, policy).to_string())},
                            {"policy", record.policy},
                            {"code", record.code},
                            {"epoch", record.epoch},
                            {"provenance", runs}},
                           record.rest);
    // A line a field and a line a timing: small, and a change of one is a change of a line.
    std::string text = "{\n";
    for (const auto& [name, value] : head.items()) text += json(name).dump() + ":" + value.dump() + ",\n";
    text += "\"measured\":[";
    const char* next = "\n";
    for (const Measured& measured : record.measured) {
        std::string fields = measured_json(measured).dump();
        fields.pop_back();
        text += next + fields + ",\n\"timings\":[";
        next = "\n";
        for (const Timing& timing : measured.timings) {
            text += next + timing_text(timing);
            next = ",\n";
        }
        text += "]}";
        next = ",\n";
    }
    return text + "]}\n";
}

std::optional<Record> record_from(std::string_view text, std::string* fault) {
    return parsed<Record>(text, fault, [](Fields& fields) {
        Record record;
        std::string family, bucket;
        fields.take("family", family);
        fields.take("bucket", bucket);
        if (!parse_bucket(bucket, record.bucket) || family != family_name(static_cast<Family>(record.bucket.family)))
            throw std::runtime_error("family \"" + family + "\", bucket \"" + bucket + "\" are not of this version");
        fields.take("best");  // follows from the timings
        fields.take("policy", record.policy);
        fields.take("code", record.code);
        fields.take("epoch", record.epoch);
        for (const json& each : fields.take("measured")) record.measured.push_back(measured_from(each));
        const json runs = fields.take("provenance");  // named: items() does not keep a temporary alive
        for (const auto& [id, each] : runs.items()) record.runs.emplace(id, provenance_from(each));
        record.rest = fields.rest();
        return record;
    });
}

std::string to_json(const Environment& environment) { return environment_json(environment).dump(1) + "\n"; }

std::optional<Environment> environment_from(std::string_view text, std::string* fault) {
    return parsed<Environment>(text, fault, [](Fields& fields) {
        Environment e;
        fields.take("sm", e.sm), fields.take("sms", e.sms), fields.take("gpu", e.gpu), fields.take("memory_gib", e.memory_gib);
        fields.take("code", e.code), fields.take("epoch", e.epoch), fields.take("policy", e.policy);
        return e;
    });
}

}  // namespace sapwood::tune
