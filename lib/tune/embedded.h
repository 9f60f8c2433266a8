// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <span>
#include <string_view>

namespace sapwood::tune {

struct EmbeddedFile {
    std::string_view path, text;
};
/// tuning/epoch and every index.json below tuning/; generated at build time.
std::span<const EmbeddedFile> embedded_tuning();

}  // namespace sapwood::tune
