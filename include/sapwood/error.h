// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <stdexcept>
#include <string>

namespace sapwood {

/// What went wrong, for programs. The text of an Error says it for people: what was asked, what was found, what to do.
enum class ErrorCode {
    kInvalidForest,      ///< cycle, parent out of range, negative or overflowing length, request on no node
    kInvalidProblem,     ///< shapes that do not fit together, unsupported head_dim, dtype or page size
    kInvalidArgument,    ///< null or misaligned pointer, stride or count out of range, page outside the pool
    kCapacityExceeded,   ///< a plan's fixed-capacity work list or workspace cannot hold the updated forest
    kUnsupportedDevice,  ///< no such device, wrong device for a plan, SM below 8.0, a kernel that cannot fit the SM
    kNoCompiler,         ///< NVRTC or a C++ compiler is needed and was not found
    kCompileFailed,      ///< the compiler refused a generated source; detail() holds its log
    kNotPrepared,        ///< the engine is sealed or capturing and the kernel or plan was not prepared
    kDriver,             ///< the CUDA driver is missing or returned an error
    kIo,                 ///< a file that the caller named could not be read or written
    kInternal,           ///< a defect in Sapwood; please report it with the text
};

/// Stable lower-case name of a code, e.g. "invalid_forest".
const char* error_code_name(ErrorCode code) noexcept;

/// The one exception type thrown by Sapwood. what() = "<code name>: <text>".
class Error : public std::runtime_error {
public:
    Error(ErrorCode code, const std::string& text, std::string detail = {});
    ErrorCode code() const noexcept { return code_; }
    /// Long material that does not belong in one line: a compiler log, a list of searched paths. May be empty.
    const std::string& detail() const noexcept { return detail_; }

private:
    ErrorCode code_;
    std::string detail_;
};

}  // namespace sapwood
