// SPDX-License-Identifier: Apache-2.0
#include "kernel/template_store.h"

#include <algorithm>
#include <deque>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

#include "base/digest.h"
#include "base/env.h"
#include "base/error.h"

namespace sapwood {
namespace {

struct Set {
    std::deque<std::string> owned;  // text read from disk; a deque never moves its elements
    std::vector<jit::Header> headers;
    std::string digest;

    Set() {
        if (const auto dir = env::get("SAPWOOD_KERNEL_DIR")) {
            read(*dir);
        } else {
            const auto all = embedded_templates();
            headers.assign(all.begin(), all.end());
        }
        std::sort(headers.begin(), headers.end(), [](const auto& a, const auto& b) { return a.path < b.path; });
        Hasher hasher;
        for (const jit::Header& header : headers) hasher.field(1, header.path).field(2, header.text);
        digest = to_hex(hasher.finish());
    }

    void read(const std::filesystem::path& root) {
        std::error_code error;
        for (const auto& file : std::filesystem::recursive_directory_iterator(root, error)) {
            if (!file.is_regular_file() || (file.path().extension() != ".h" && file.path().extension() != ".in")) continue;
            std::ifstream in(file.path(), std::ios::binary);
            owned.emplace_back(std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>());
            const std::string& text = owned.back();
            owned.push_back(std::filesystem::relative(file.path(), root).generic_string());
            headers.push_back({owned.back(), text});
        }
        if (headers.empty()) {
            raise(ErrorCode::kIo, "SAPWOOD_KERNEL_DIR names " + root.string() +
                                      ", where no template (.h, .in) was found; unset it to use the "
                                      "embedded ones");
        }
    }
};

const Set& set() {
    static const Set instance;
    return instance;
}

}  // namespace

std::span<const jit::Header> template_set() { return set().headers; }
std::string_view template_set_digest() { return set().digest; }

std::string_view template_text(std::string_view path) {
    for (const jit::Header& header : set().headers) {
        if (header.path == path) return header.text;
    }
    raise(ErrorCode::kInternal, "template " + std::string(path) + " is not in the set");
}

}  // namespace sapwood
