// SPDX-License-Identifier: Apache-2.0
// Small kernels written in a test, compiled for the host target with the real template set.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "host/host.h"
#include "kernel/template_store.h"

namespace sapwood::support {

/// The entry must be called `test_kernel`. The same source and options compile once a process.
inline const jit::Artifact& compile_for_host(const std::string& source, std::vector<std::string> options = {}) {
    static std::map<std::string, jit::Artifact> known;
    std::string key = source;
    for (const std::string& option : options) key += '\n' + option;
    if (const auto it = known.find(key); it != known.end()) return it->second;
    jit::CompileRequest request;
    request.name = "test_kernel";
    request.source = "#include \"isa/isa.h\"\nusing namespace sapwood::kernel;\n" + source;
    request.entry = "test_kernel";
    request.target = "host";
    request.options = std::move(options);
    request.headers = template_set();
    request.headers_digest = template_set_digest();
    host::Compiler compiler;
    return known.emplace(key, compiler.compile(request)).first->second;
}

/// Compiles, loads and runs once. Throws what these throw.
template <class Params>
void run_on_host(const std::string& source, const jit::LaunchShape& shape, const Params& params, std::uint64_t seed = 0,
                 std::vector<std::string> options = {}) {
    const auto kernel = host::load(compile_for_host(source, std::move(options)), {.schedule_seed = seed, .os_threads = 2});
    kernel->launch(shape, &params, sizeof(params), nullptr);
}

}  // namespace sapwood::support
