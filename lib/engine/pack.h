// SPDX-License-Identifier: Apache-2.0
// Fills bundles with kernels of an engine or of a cache.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "jit/bundle.h"
#include "jit/disk_cache.h"
#include "kernel/key.h"
#include "sapwood/engine.h"

namespace sapwood {

/// Empty contents for the templates of this library.
jit::BundleContents empty_bundle();

/// Adds the kernel, fetched or compiled. Throws what the compiler throws.
void pack_kernel(jit::BundleContents& contents, Engine& engine, const KernelKey& key);

/// Adds every sound entry of a cache that was made of this library's templates, for these targets (empty: all). Of several compiler
/// builds of one kernel: this machine's, else the one with the lowest digest, so that the choice does not depend on the order of
/// files. Returns how many entries were left out.
std::size_t pack_cache(jit::BundleContents& contents, const jit::DiskCache& cache, const std::vector<std::string>& targets);

/// Adds every file below (an engine that has the bundle reads the index.json among them) `directory` as an attachment
/// "tune/<path>". Throws kIo.
void pack_tuning(jit::BundleContents& contents, const std::filesystem::path& directory);

}  // namespace sapwood
