// SPDX-License-Identifier: Apache-2.0
// Private to this room: finds libnvrtc and names its exact build without loading it.
#pragma once

#include <string>
#include <vector>

namespace sapwood::cuda {

struct NvrtcFiles {
    std::string library;             // empty: none was found
    std::string builtins;            // libnvrtc-builtins beside it
    std::vector<std::string> tried;  // "<place>: <why not>", in order
    bool explicitly = false;         // SAPWOOD_NVRTC decided: no other place was tried
};

/// Order: SAPWOOD_NVRTC, which alone counts if set; already loaded in the process; the loader's directories; packages beside loaded
/// libraries, this binary and its build tree; CUDA_HOME, CUDA_PATH; the build's hint; the usual places; the loader's cache.
NvrtcFiles locate_nvrtc();

/// The GNU build-id of an ELF file in hex, read from its notes; empty if there is none.
std::string elf_build_id(const std::string& path);

}  // namespace sapwood::cuda
