// SPDX-License-Identifier: Apache-2.0
// The template set: every file of templates/, embedded at build time, or read from SAPWOOD_KERNEL_DIR while developing.
#pragma once

#include <span>
#include <string_view>

#include "jit/compile.h"

namespace sapwood {

std::span<const jit::Header> embedded_templates();  // generated

/// The set in use, sorted by path; alive for the process.
std::span<const jit::Header> template_set();
/// Hex digest of the whole set: any change of a template is another kernel.
std::string_view template_set_digest();
std::string_view template_text(std::string_view path);

}  // namespace sapwood
