// SPDX-License-Identifier: Apache-2.0
#include "kernel/key.h"

#include <algorithm>

#include "plan/tiles.h"

namespace sapwood {

namespace {

std::string decode_text(const KernelKey& key) {
    const auto number = [](unsigned value) { return std::to_string(value); };
    const auto kv_dtype = static_cast<KvDType>(key.kv_dtype);
    return "decode/" + std::string(dtype_name(static_cast<DType>(key.dtype))) +
           (kv_dtype != KvDType::as_q ? std::string("/").append(kv_dtype_name(kv_dtype)) : std::string()) + "/d" +
           number(key.head_dim) + "/v" + number(key.head_dim_v) + "/g" + number(key.group) + "/page" + number(key.page_size) +
           (key.score == static_cast<unsigned>(Score::negated) ? "/neg" : "/cap" + number(key.score)) +
           (key.mask != 0 ? "/mask" + number(key.mask) : "") + "/" + mainloop_name(static_cast<Mainloop>(key.mainloop)) + "/w" +
           number(key.warps) + "/p" + number(key.producers) + "/kv" + number(key.block_kv) + "/s" + number(key.stages) + "/b" +
           number(key.blocks) + "/" + std::string(key.target.data());
}

std::string merge_text(const KernelKey& key) {
    return "merge/" + std::string(state_dtype_name(static_cast<StateDType>(key.dtype))) + "/" +
           state_dtype_name(static_cast<StateDType>(key.out_dtype)) + "/d" + std::to_string(key.head_dim) +
           (key.separate != 0 ? "/separate" : "/stacked") + "/f" + std::to_string(key.stages) + "/" + key.target.data();
}

void set_target(KernelKey& key, const std::string& target) {
    std::copy_n(target.begin(), std::min(target.size(), key.target.size() - 1), key.target.begin());
}

/// Heads, masks and lengths are arguments: a pack's kernel depends on nothing but shapes and tiles.
std::string packed_text(const char* family, const KernelKey& key) {
    const auto number = [](unsigned value) { return std::to_string(value); };
    return std::string(family) + "/" + dtype_name(static_cast<DType>(key.dtype)) + "/d" + number(key.head_dim) + "/v" +
           number(key.head_dim_v) + (key.score == static_cast<unsigned>(Score::negated) ? "/neg" : "/cap" + number(key.score)) +
           (key.mask != 0 ? "/arrays" : "") + (key.fixed_order != 0 ? "/order" + number(key.fixed_order) : "") + "/" +
           mainloop_name(static_cast<Mainloop>(key.mainloop)) + "/w" + number(key.warps) + "/p" + number(key.producers) + "/kv" +
           number(key.block_kv) + "/s" + number(key.stages) + "/b" + number(key.blocks) +
           (key.group != 0 ? "/h" + number(key.group) : "") + "/" + std::string(key.target.data());
}

Score score_of(float scale, float softcap) { return softcap > 0 ? Score::softcap : scale < 0 ? Score::negated : Score::scaled; }

}  // namespace

const char* family_name(Family family) noexcept {
    switch (family) {
        case Family::decode:
            return "decode";
        case Family::merge:
            return "merge";
        case Family::packed_forward:
            return "packed_forward";
        case Family::packed_backward:
            return "packed_backward";
        case Family::backward_prepare:
            return "backward_prepare";
        case Family::backward_finish:
            return "backward_finish";
        case Family::array_bounds:
            return "array_bounds";
        case Family::forward_tiles:
            return "forward_tiles";
        case Family::backward_tiles:
            return "backward_tiles";
    }
    return "no kernel";
}

std::string KernelKey::to_string() const {
    switch (static_cast<Family>(family)) {
        case Family::decode:
            return decode_text(*this);
        case Family::merge:
            return merge_text(*this);
        case Family::packed_forward:
        case Family::packed_backward:
        case Family::backward_prepare:
        case Family::backward_finish:
            return packed_text(family_name(static_cast<Family>(family)), *this);
        case Family::array_bounds:
        case Family::forward_tiles:
        case Family::backward_tiles:
            return std::string(family_name(static_cast<Family>(family))) + "/" + target.data();
    }
    return "no kernel";
}

KernelKey decode_key(const DecodeProblem& problem, const DecodeConfig& config, const std::string& target) {
    KernelKey key;
    key.family = static_cast<std::uint8_t>(Family::decode);
    key.dtype = static_cast<std::uint8_t>(problem.dtype);
    key.kv_dtype = static_cast<std::uint8_t>(problem.kv_dtype);
    key.score = static_cast<std::uint8_t>(score_of(problem.scale, problem.softcap));
    key.page_size = static_cast<std::uint8_t>(problem.page_size);
    key.mask = problem.mask ? 1 : 0;
    key.head_dim = static_cast<std::uint16_t>(problem.head_dim);
    key.head_dim_v = static_cast<std::uint16_t>(problem.head_dim_v);
    key.group = static_cast<std::uint16_t>(group_of(problem));
    key.block_kv = static_cast<std::uint16_t>(config.block_kv);
    key.mainloop = static_cast<std::uint8_t>(config.mainloop);
    key.warps = static_cast<std::uint8_t>(config.warps);
    key.producers = static_cast<std::uint8_t>(config.producers);
    key.stages = static_cast<std::uint8_t>(config.stages);
    key.blocks = static_cast<std::uint8_t>(config.blocks);
    set_target(key, target);
    return key;
}

KernelKey merge_key(const MergeProblem& problem, const std::string& target) {
    // Where rows have few parts, many resident warps hide the trip to memory and want few registers; where they have many, a warp
    // hides it by itself.
    constexpr std::uint8_t kFew = 4, kMany = 16;
    KernelKey key;
    key.family = static_cast<std::uint8_t>(Family::merge);
    key.dtype = static_cast<std::uint8_t>(problem.part_dtype);
    key.out_dtype = static_cast<std::uint8_t>(problem.out_dtype);
    key.head_dim = static_cast<std::uint16_t>(problem.head_dim);
    key.separate = problem.layout == MergeLayout::separate ? 1 : 0;
    key.stages = problem.usual_parts > kFew ? kMany : kFew;
    set_target(key, target);
    return key;
}

KernelKey array_key(Family family, const std::string& target) {
    KernelKey key;
    key.family = static_cast<std::uint8_t>(family);
    set_target(key, target);
    return key;
}

KernelKey packed_key(Family family, const PackedProblem& problem, const PackedConfig& config, const std::string& target,
                     const PackTraits& traits) {
    KernelKey key;
    key.fixed_order = traits.fixed_order ? 1 : 0;
    key.family = static_cast<std::uint8_t>(family);
    key.dtype = static_cast<std::uint8_t>(problem.dtype);
    key.score = static_cast<std::uint8_t>(score_of(problem.scale, problem.softcap));
    key.head_dim = static_cast<std::uint16_t>(problem.head_dim);
    key.head_dim_v = static_cast<std::uint16_t>(problem.head_dim_v);
    key.block_kv = static_cast<std::uint16_t>(config.block_kv);
    key.mainloop = static_cast<std::uint8_t>(config.mainloop);
    key.warps = static_cast<std::uint8_t>(config.warps);
    key.producers = static_cast<std::uint8_t>(config.producers);
    key.stages = static_cast<std::uint8_t>(config.stages);
    key.blocks = static_cast<std::uint8_t>(config.blocks);
    key.mask = traits.arrays ? 1 : 0;
    if (family == Family::packed_forward && config.heads > 1) key.group = static_cast<std::uint16_t>(config.heads);
    set_target(key, target);
    return key;
}

}  // namespace sapwood
