// SPDX-License-Identifier: Apache-2.0
#include "kernel/key.h"

#include <algorithm>

#include "plan/tiles.h"

namespace sapwood {

namespace {

std::string decode_text(const KernelKey& key) {
    const auto number = [](unsigned value) { return std::to_string(value); };
    return "decode/" + std::string(dtype_name(static_cast<DType>(key.dtype))) + "/d" + number(key.head_dim) + "/v" +
           number(key.head_dim_v) + "/g" + number(key.group) + "/page" + number(key.page_size) +
           (key.score == static_cast<unsigned>(Score::negated) ? "/neg" : "/cap" + number(key.score)) +
           (key.mask != 0 ? "/mask" + number(key.mask) : "") + "/" + mainloop_name(static_cast<Mainloop>(key.mainloop)) + "/w" +
           number(key.warps) + "/p" + number(key.producers) + "/kv" + number(key.block_kv) + "/s" + number(key.stages) + "/b" +
           number(key.blocks) + "/" + std::string(key.target.data());
}

}  // namespace

std::string KernelKey::to_string() const {
    switch (static_cast<Family>(family)) {
        case Family::decode:
            return decode_text(*this);
    }
    return "no kernel";
}

KernelKey decode_key(const DecodeProblem& problem, const DecodeConfig& config, const std::string& target) {
    KernelKey key;
    key.family = static_cast<std::uint8_t>(Family::decode);
    key.dtype = static_cast<std::uint8_t>(problem.dtype);
    key.score = static_cast<std::uint8_t>(problem.softcap > 0 ? Score::softcap
                                          : problem.scale < 0 ? Score::negated
                                                              : Score::scaled);
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
    std::copy_n(target.begin(), std::min(target.size(), key.target.size() - 1), key.target.begin());
    return key;
}

}  // namespace sapwood
