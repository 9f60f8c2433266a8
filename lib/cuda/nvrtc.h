// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "jit/compile.h"

namespace sapwood::cuda {

/// NVRTC through dlopen. Construction and identity() do not load the library (its GNU build-id is read from the file).
class Nvrtc final : public jit::Compiler {
public:
    Nvrtc();
    ~Nvrtc() override;
    std::string identity() override;  // "nvrtc:<build-id>+builtins:<build-id>"; throws kNoCompiler listing what was tried
    std::string family() override { return "nvrtc"; }
    jit::Artifact compile(const jit::CompileRequest& request) override;

    std::string path();                  // file that is or would be loaded; empty if none
    std::string version();               // "13.0", loads the library
    std::vector<int> supported_archs();  // {75, 80, …}, loads the library

private:
    struct Impl;
    std::unique_ptr<Impl> impl_;
};

}  // namespace sapwood::cuda
