// SPDX-License-Identifier: Apache-2.0
// What a compiler is to the cache: source in, artifact out. cuda/nvrtc and host/compiler implement it.
#pragma once

#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "jit/artifact.h"

namespace sapwood::jit {

/// An in-memory header: `path` is what the source writes in #include "…".
struct Header {
    std::string_view path;
    std::string_view text;
};

struct CompileRequest {
    std::string name;                  // canonical key text; goes into errors and the artifact
    std::string source;                // the rendered unit
    std::string entry;                 // extern "C" symbol
    std::string target;                // "sm_90a", "host"
    std::vector<std::string> options;  // only options that Sapwood itself emits, in canonical order
    std::span<const Header> headers;   // the whole template set, alive as long as the process
    std::string_view headers_digest;   // hex digest of the template set
};

class Compiler {
public:
    virtual ~Compiler() = default;
    /// Exact build of this compiler; part of the content digest. Cheap enough to call at a warm start (no dlopen of the compiler).
    virtual std::string identity() = 0;
    /// What is known of it even where it is not installed: artifacts of one family, from the same request, do the same on the same
    /// machine, whichever build made them. Never throws for a compiler that is missing.
    virtual std::string family() { return {}; }
    /// Compiles or throws Error{kNoCompiler, kCompileFailed}. Thread-safe.
    virtual Artifact compile(const CompileRequest& request) = 0;
};

}  // namespace sapwood::jit
