// SPDX-License-Identifier: Apache-2.0
#include "jit/disk_cache.h"

namespace sapwood::jit {
namespace {

// Raise it when the same inputs would have to give another artifact, e.g. a change of the kernel ABI outside templates/.
constexpr std::string_view kSchema = "1";

}  // namespace

Digest content_digest(const CompileRequest& request, std::string_view compiler_identity) {
    Hasher hasher;
    hasher.field(1, kSchema).field(2, request.headers_digest).field(3, request.source).field(4, request.entry);
    for (const std::string& option : request.options) hasher.field(5, option);
    hasher.field(6, request.target).field(7, compiler_identity);
    return hasher.finish();
}

}  // namespace sapwood::jit
