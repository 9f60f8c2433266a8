// SPDX-License-Identifier: Apache-2.0
#include "tune/epoch.h"

#include <cctype>
#include <charconv>

#include "base/digest.h"
#include "kernel/template_store.h"
#include "tune/embedded.h"

namespace sapwood::tune {

std::string code_of(std::string_view text) {
    std::string code;
    code.reserve(text.size());
    const auto blank = [&] {
        if (!code.empty() && code.back() != ' ') code += ' ';
    };
    for (std::size_t i = 0; i < text.size(); ++i) {
        const char c = text[i], next = i + 1 < text.size() ? text[i + 1] : '\0';
        if (c == '/' && next == '/') {
            while (i < text.size() && text[i] != '\n') ++i;
            blank();
        } else if (c == '/' && next == '*') {
            const std::size_t end = text.find("*/", i + 2);
            i = end == std::string_view::npos ? text.size() : end + 1;
            blank();
        } else if (c == '"') {  // PTX and include names: taken as they are
            code += c;
            for (++i; i < text.size() && text[i] != '"'; ++i) {
                code += text[i];
                if (text[i] == '\\' && i + 1 < text.size()) code += text[++i];
            }
            code += '"';
        } else if (std::isspace(static_cast<unsigned char>(c))) {
            blank();
        } else {
            code += c;
        }
    }
    return code;
}

const std::string& code_digest() {
    static const std::string digest = [] {
        Hasher hasher;
        for (const jit::Header& header : template_set()) {
            if (header.path.starts_with("isa/host")) continue;  // the CPU's body: no GPU kernel has it
            hasher.field(1, header.path).field(2, code_of(header.text));
        }
        return to_hex(hasher.finish()).substr(0, 16);
    }();
    return digest;
}

const Epoch& tuning_epoch() {
    static const Epoch epoch = [] {
        Epoch read;
        for (const EmbeddedFile& file : embedded_tuning()) {
            if (file.path != "epoch") continue;
            // Lines of "name value"; # starts a comment.
            for (std::size_t at = 0; at < file.text.size();) {
                const std::size_t end = std::min(file.text.find('\n', at), file.text.size());
                const std::string_view line = file.text.substr(at, end - at);
                at = end + 1;
                if (line.starts_with("epoch ")) std::from_chars(line.data() + 6, line.data() + line.size(), read.number);
                if (line.starts_with("code ")) read.confirmed_for = std::string(line.substr(5));
            }
        }
        return read;
    }();
    return epoch;
}

}  // namespace sapwood::tune
