// SPDX-License-Identifier: Apache-2.0
#include "engine/pack.h"

#include <algorithm>
#include <fstream>
#include <iterator>

#include "base/error.h"
#include "cuda/nvrtc.h"
#include "engine/engine_impl.h"
#include "host/host.h"
#include "jit/entry_file.h"
#include "kernel/key_text.h"
#include "kernel/render.h"
#include "kernel/template_store.h"

namespace sapwood {
namespace fs = std::filesystem;
namespace {

/// Empty where it is not installed.
std::string identity_of(jit::Compiler& compiler) {
    try {
        return compiler.identity();
    } catch (const Error&) {
        return {};
    }
}

}  // namespace

jit::BundleContents empty_bundle() {
    jit::BundleContents contents;
    contents.template_set = template_set_digest();
    return contents;
}

void pack_kernel(jit::BundleContents& contents, Engine& engine, const KernelKey& key) {
    KernelService& service = *engine.impl().service;
    const jit::CompileRequest request = render(key);
    jit::Origin origin{};
    const auto artifact = service.artifact(key, &origin);
    contents.add(jit::content_digest(request, service.setup.compiler->family()), *artifact,
                 jit::content_digest(request, artifact->compiler));
}

std::size_t pack_cache(jit::BundleContents& contents, const jit::DiskCache& cache, const std::vector<std::string>& targets) {
    cuda::Nvrtc nvrtc;
    host::Compiler host;
    const std::string nvrtc_here = identity_of(nvrtc), host_here = identity_of(host);
    std::map<Digest, bool> from_here;  // by source digest: by this machine's compiler
    std::size_t left_out = 0;
    auto entries = cache.list(/*verify=*/true);
    std::sort(entries.begin(), entries.end(), [](const auto& a, const auto& b) { return a.digest < b.digest; });
    for (const jit::CacheEntryInfo& entry : entries) {
        if (!targets.empty() && std::find(targets.begin(), targets.end(), entry.target) == targets.end()) continue;
        ++left_out;
        const auto digest = parse_digest(entry.digest);
        if (!entry.fault.empty() || !digest) continue;
        jit::CompileRequest request;
        try {
            request = render(parse_key(entry.name));
        } catch (const Error&) {
            continue;  // of another version, or no kernel of ours
        }
        // The entry says which build made it: with that, these templates must give its digest.
        if (jit::content_digest(request, entry.compiler) != *digest) continue;
        const bool is_host = entry.target == "host", here = entry.compiler == (is_host ? host_here : nvrtc_here);
        if (is_host && !here) continue;  // flags are part of a host compiler's identity; other ones may not fit this library
        const Digest source = jit::content_digest(request, is_host ? host.family() : nvrtc.family());
        if (const auto known = from_here.find(source); known != from_here.end() && (known->second || !here)) continue;
        const jit::EntryBytes file = jit::read_entry_file(entry.path);
        const auto artifact = jit::decode_entry(file.bytes, &*digest, nullptr);
        if (artifact == nullptr) continue;
        contents.add(source, *artifact, *digest);
        from_here[source] = here;
        --left_out;
    }
    return left_out;
}

void pack_tuning(jit::BundleContents& contents, const fs::path& directory) {
    std::error_code error;
    fs::recursive_directory_iterator it(directory, error);
    if (error) raise(ErrorCode::kIo, "cannot read the tuning directory " + directory.string() + ": " + error.message());
    for (const fs::directory_entry& file : it) {
        if (!file.is_regular_file()) continue;
        std::ifstream in(file.path(), std::ios::binary);
        const std::string text{std::istreambuf_iterator<char>(in), {}};
        if (!in) raise(ErrorCode::kIo, "cannot read " + file.path().string());
        const auto bytes = std::as_bytes(std::span(text));
        contents.attachments["tune/" + fs::relative(file.path(), directory).generic_string()] = {bytes.begin(), bytes.end()};
    }
}

}  // namespace sapwood
