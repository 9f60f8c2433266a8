// SPDX-License-Identifier: Apache-2.0
#include "kernel/key_text.h"

#include <algorithm>
#include <charconv>
#include <vector>

#include "base/error.h"

namespace sapwood {
namespace {

std::vector<std::string_view> parts_of(std::string_view text) {
    std::vector<std::string_view> parts;
    for (std::size_t at = 0; at <= text.size();) {
        const std::size_t end = std::min(text.find('/', at), text.size());
        parts.push_back(text.substr(at, end - at));
        at = end + 1;
    }
    return parts;
}

/// The number after `name` in the part that is name and number; -1 if there is none.
int number(const std::vector<std::string_view>& parts, std::string_view name) {
    for (const std::string_view part : parts) {
        if (!part.starts_with(name)) continue;
        int value = -1;
        const char* end = part.data() + part.size();
        if (const auto parsed = std::from_chars(part.data() + name.size(), end, value);
            parsed.ec == std::errc{} && parsed.ptr == end)
            return value;
    }
    return -1;
}

StateDType state_dtype(std::string_view name) {
    for (const StateDType dtype : {StateDType::fp16, StateDType::bf16, StateDType::fp32}) {
        if (name == state_dtype_name(dtype)) return dtype;
    }
    return {};
}

KernelKey parse_merge_key(const std::vector<std::string_view>& parts) {
    MergeProblem problem;
    problem.part_dtype = state_dtype(parts.size() > 1 ? parts[1] : "");
    problem.out_dtype = state_dtype(parts.size() > 2 ? parts[2] : "");
    problem.head_dim = number(parts, "d");
    problem.layout = parts.size() > 4 && parts[4] == "separate" ? MergeLayout::separate : MergeLayout::rows_parts;
    problem.usual_parts = number(parts, "f");
    return merge_key(problem, std::string(parts.back()));
}

KernelKey parse_packed_key(Family family, std::string_view text, const std::vector<std::string_view>& parts) {
    PackedProblem problem;
    PackedConfig config;
    problem.dtype = parts.size() > 1 && parts[1] == dtype_name(DType::fp16) ? DType::fp16 : DType::bf16;
    problem.head_dim = number(parts, "d");
    problem.head_dim_v = number(parts, "v");
    problem.softcap = number(parts, "cap") == 1 ? 1.0f : 0.0f;
    problem.scale = text.find("/neg/") != std::string_view::npos ? -1.0f : 1.0f;
    config.mainloop = text.find("/wgmma/") != std::string_view::npos ? Mainloop::wgmma : Mainloop::mma;
    config.warps = number(parts, "w");
    config.producers = number(parts, "p");
    config.block_kv = number(parts, "kv");
    config.stages = number(parts, "s");
    config.blocks = number(parts, "b");
    config.heads = std::max(number(parts, "h"), 0);
    return packed_key(family, problem, config, std::string(parts.back()),
                      {.arrays = text.find("/arrays/") != std::string_view::npos, .fixed_order = number(parts, "order") == 1});
}

KernelKey parse_decode_key(std::string_view text, const std::vector<std::string_view>& parts) {
    DecodeProblem problem;
    DecodeConfig config;
    problem.kv_heads = 1;
    problem.dtype = parts.size() > 1 && parts[1] == dtype_name(DType::fp16) ? DType::fp16 : DType::bf16;
    problem.kv_dtype = parts.size() > 2 && parts[2] == kv_dtype_name(KvDType::e4m3) ? KvDType::e4m3 : KvDType::as_q;
    problem.head_dim = number(parts, "d");
    problem.head_dim_v = number(parts, "v");
    problem.q_heads = number(parts, "g");
    problem.page_size = number(parts, "page");
    problem.softcap = number(parts, "cap") == 1 ? 1.0f : 0.0f;
    problem.mask = number(parts, "mask") == 1;
    problem.scale = text.find("/neg/") != std::string_view::npos ? -1.0f : 1.0f;
    config.mainloop = text.find("/wgmma/") != std::string_view::npos ? Mainloop::wgmma : Mainloop::mma;
    config.warps = number(parts, "w");
    config.producers = number(parts, "p");
    config.block_kv = number(parts, "kv");
    config.stages = number(parts, "s");
    config.blocks = number(parts, "b");
    return decode_key(problem, config, std::string(parts.back()));
}

KernelKey parse_parts(std::string_view text, const std::vector<std::string_view>& parts) {
    if (parts[0] == family_name(Family::merge)) return parse_merge_key(parts);
    for (const Family family : {Family::packed_forward, Family::packed_backward, Family::backward_prepare, Family::backward_finish})
        if (parts[0] == family_name(family)) return parse_packed_key(family, text, parts);
    for (const Family family : {Family::array_bounds, Family::forward_tiles, Family::backward_tiles})
        if (parts[0] == family_name(family)) return array_key(family, std::string(parts.back()));
    return parse_decode_key(text, parts);
}

}  // namespace

KernelKey parse_key(std::string_view text) {
    const std::vector<std::string_view> parts = parts_of(text);
    const KernelKey key = parse_parts(text, parts);
    // Written back it must be what was read: nothing in the text is left out, nothing wraps, whatever a key may come to hold.
    if (key.to_string() != text)
        raise(ErrorCode::kInvalidArgument,
              "\"" + std::string(text) + "\" is no kernel key; one looks like " +
                  decode_key({.q_heads = 4, .kv_heads = 1, .head_dim = 128, .head_dim_v = 128, .page_size = 16},
                             {.mainloop = Mainloop::mma, .warps = 8, .producers = 4, .block_kv = 64, .stages = 6, .blocks = 1},
                             "sm_90a")
                      .to_string() +
                  " or " + merge_key({.head_dim = 128}, "sm_90a").to_string());
    return key;
}

DecodeProblem problem_of(const KernelKey& key) {
    DecodeProblem problem;
    problem.q_heads = key.group;
    problem.kv_heads = 1;
    problem.head_dim = key.head_dim;
    problem.head_dim_v = key.head_dim_v;
    problem.dtype = static_cast<DType>(key.dtype);
    problem.kv_dtype = static_cast<KvDType>(key.kv_dtype);
    problem.page_size = key.page_size;
    problem.mask = key.mask != 0;
    problem.scale = key.score == static_cast<std::uint8_t>(Score::negated) ? -1.0f : 1.0f;
    problem.softcap = key.score == static_cast<std::uint8_t>(Score::softcap) ? 1.0f : 0.0f;
    return problem;
}

DecodeConfig with_tiles(DecodeConfig config, const KernelKey& key) {
    config.mainloop = static_cast<Mainloop>(key.mainloop);
    config.warps = key.warps, config.producers = key.producers, config.block_kv = key.block_kv, config.stages = key.stages;
    config.blocks = key.blocks;
    return config;
}

DecodeConfig config_of(const KernelKey& key) { return with_tiles({}, key); }

bool same_problem(const KernelKey& a, const KernelKey& b) noexcept {
    KernelKey c = b;
    c.mainloop = a.mainloop;
    c.warps = a.warps, c.producers = a.producers, c.block_kv = a.block_kv, c.stages = a.stages, c.blocks = a.blocks;
    return a == c;
}

}  // namespace sapwood
