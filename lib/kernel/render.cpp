// SPDX-License-Identifier: Apache-2.0
#include "kernel/render.h"

#include <map>

#include "base/error.h"
#include "kernel/decode_source.h"
#include "kernel/merge_source.h"
#include "kernel/packed_source.h"
#include "kernel/template_store.h"

namespace sapwood {
namespace {

/// Replaces every @name@; an unknown or unused slot is a defect in the templates, found by the first render of any test.
std::string fill(std::string_view text, const std::map<std::string, std::string>& slots) {
    std::string out;
    std::map<std::string, bool> used;
    for (std::size_t at = 0; at < text.size();) {
        const std::size_t open = text.find('@', at);
        if (open == std::string_view::npos) {
            out += text.substr(at);
            break;
        }
        const std::size_t close = text.find('@', open + 1);
        const std::string name(text.substr(open + 1, close - open - 1));
        const auto slot = slots.find(name);
        if (close == std::string_view::npos || slot == slots.end())
            raise(ErrorCode::kInternal, "template slot @" + name + "@ is unknown");
        out += text.substr(at, open - at);
        out += slot->second;
        used[name] = true;
        at = close + 1;
    }
    for (const auto& [name, value] : slots) {
        if (!used[name])
            raise(ErrorCode::kInternal,
                  "template slot @" + name + "@ is never used, so the key would split kernels that are equal");
    }
    return out;
}

KernelSource source_of(const KernelKey& key) {
    switch (static_cast<Family>(key.family)) {
        case Family::decode:
            return decode_source(key);
        case Family::merge:
            return merge_source(key);
        case Family::packed_forward:
            return packed_forward_source(key);
        case Family::packed_backward:
        case Family::backward_prepare:
        case Family::backward_finish:
            return packed_backward_source(key);
        case Family::array_bounds:
        case Family::forward_tiles:
        case Family::backward_tiles:
            return array_source(key);
    }
    raise(ErrorCode::kInternal, "unknown kernel family " + std::to_string(key.family));
}

}  // namespace

const char* score_policy(Score score) {
    switch (score) {
        case Score::scaled:
            return "ScaledScore";
        case Score::softcap:
            return "SoftcapScore";
        case Score::negated:
            return "NegatedScore";
    }
    raise(ErrorCode::kInternal, "unknown score policy");
}

KernelResources resources_of(const KernelKey& key) {
    switch (static_cast<Family>(key.family)) {
        case Family::decode:
            return decode_resources(key);
        case Family::merge:
            return merge_resources(key);
        case Family::packed_forward:
            return packed_forward_resources(key);
        case Family::packed_backward:
        case Family::backward_prepare:
        case Family::backward_finish:
            return packed_backward_resources(key);
        case Family::array_bounds:
        case Family::forward_tiles:
        case Family::backward_tiles:
            return array_resources(key);
    }
    raise(ErrorCode::kInternal, "unknown kernel family " + std::to_string(key.family));
}

jit::CompileRequest render(const KernelKey& key) {
    KernelSource source = source_of(key);
    jit::CompileRequest request;
    request.name = key.to_string();
    request.entry = source.entry;
    request.target = key.target.data();
    source.slots["key"] = request.name;
    request.source = fill(template_text(source.text), source.slots);
    if (request.target != "host") request.options = {"-std=c++20", "-default-device"};
    request.headers = template_set();
    request.headers_digest = template_set_digest();
    return request;
}

}  // namespace sapwood
