// SPDX-License-Identifier: Apache-2.0
#include "kernel/render.h"

#include <bit>
#include <map>

#include "attention/decode_layout.h"
#include "base/error.h"
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

abi::DecodeShape shape_of(const KernelKey& key) {
    return {key.head_dim, key.head_dim_v, key.group, key.warps, key.producers, key.block_kv, key.stages};
}

}  // namespace

std::uint32_t threads_of(const KernelKey& key) { return (key.warps + key.producers) * 32u; }
std::uint32_t shared_bytes_of(const KernelKey& key) { return abi::decode_shared_bytes(shape_of(key)); }

jit::CompileRequest render(const KernelKey& key) {
    const std::string kv_source = key.page_size == 0
                                      ? "ContiguousKv"
                                      : "PagedKv<" + std::to_string(std::countr_zero(static_cast<unsigned>(key.page_size))) + ">";
    jit::CompileRequest request;
    request.name = key.to_string();
    request.entry = "sapwood_decode";
    request.target = key.target.data();
    request.source =
        fill(template_text("entry/decode.cu.in"), {
                                                      {"key", request.name},
                                                      {"element", key.dtype == static_cast<int>(DType::fp16) ? "Fp16" : "Bf16"},
                                                      {"kv_source", kv_source},
                                                      {"score", score_policy(static_cast<Score>(key.score))},
                                                      {"mainloop", mainloop_name(static_cast<Mainloop>(key.mainloop))},
                                                      {"head_dim", std::to_string(key.head_dim)},
                                                      {"head_dim_v", std::to_string(key.head_dim_v)},
                                                      {"group", std::to_string(key.group)},
                                                      {"warps", std::to_string(key.warps)},
                                                      {"producers", std::to_string(key.producers)},
                                                      {"block_kv", std::to_string(key.block_kv)},
                                                      {"stages", std::to_string(key.stages)},
                                                      {"threads", std::to_string(threads_of(key))},
                                                      {"blocks", std::to_string(key.blocks)},
                                                  });
    if (request.target != "host") request.options = {"-std=c++20", "-default-device"};
    request.headers = template_set();
    request.headers_digest = template_set_digest();
    return request;
}

}  // namespace sapwood
