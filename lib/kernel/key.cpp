// SPDX-License-Identifier: Apache-2.0
#include "kernel/key.h"

#include <algorithm>

#include "plan/tiles.h"

namespace sapwood {

std::string KernelKey::to_string() const {
    const auto number = [](unsigned value) { return std::to_string(value); };
    return "decode/" + std::string(dtype_name(static_cast<DType>(dtype))) + "/d" + number(head_dim) + "/v" + number(head_dim_v) +
           "/g" + number(group) + "/page" + number(page_size) +
           (score == static_cast<unsigned>(Score::negated) ? "/neg" : "/cap" + number(score)) + "/" +
           mainloop_name(static_cast<Mainloop>(mainloop)) + "/w" + number(warps) + "/p" + number(producers) + "/kv" +
           number(block_kv) + "/s" + number(stages) + "/b" + number(blocks) + "/" + std::string(target.data());
}

KernelKey decode_key(const DecodeProblem& problem, const DecodeConfig& config, const std::string& target) {
    KernelKey key;
    key.family = static_cast<std::uint8_t>(Family::decode);
    key.dtype = static_cast<std::uint8_t>(problem.dtype);
    key.score = static_cast<std::uint8_t>(problem.softcap > 0 ? Score::softcap
                                          : problem.scale < 0 ? Score::negated
                                                              : Score::scaled);
    key.page_size = static_cast<std::uint8_t>(problem.page_size);
    key.head_dim = static_cast<std::uint16_t>(problem.head_dim);
    key.head_dim_v = static_cast<std::uint16_t>(problem.head_dim_v);
    key.group = static_cast<std::uint16_t>(group_of(problem));
    key.block_kv = static_cast<std::uint16_t>(config.block_kv);
    key.mainloop = static_cast<std::uint8_t>(config.mainloop);
    key.warps = static_cast<std::uint8_t>(config.warps);
    key.producers = static_cast<std::uint8_t>(config.producers);
    key.stages = static_cast<std::uint8_t>(config.stages);
    key.blocks = static_cast<std::uint8_t>(config.blocks);
    std::copy_n(target.begin(), std::min(target.size(), key.target.size() - 1), key.target.begin());
    return key;
}

}  // namespace sapwood
