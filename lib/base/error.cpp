// SPDX-License-Identifier: Apache-2.0
#include "base/error.h"

#include <utility>

namespace sapwood {

const char* error_code_name(ErrorCode code) noexcept {
    switch (code) {
        case ErrorCode::kInvalidForest:
            return "invalid_forest";
        case ErrorCode::kInvalidProblem:
            return "invalid_problem";
        case ErrorCode::kInvalidArgument:
            return "invalid_argument";
        case ErrorCode::kCapacityExceeded:
            return "capacity_exceeded";
        case ErrorCode::kUnsupportedDevice:
            return "unsupported_device";
        case ErrorCode::kNoCompiler:
            return "no_compiler";
        case ErrorCode::kCompileFailed:
            return "compile_failed";
        case ErrorCode::kNotPrepared:
            return "not_prepared";
        case ErrorCode::kDriver:
            return "driver";
        case ErrorCode::kIo:
            return "io";
        case ErrorCode::kInternal:
            return "internal";
    }
    return "unknown";  // a value cast from an integer, e.g. through the C interface
}

Error::Error(ErrorCode code, const std::string& text, std::string detail)
    : std::runtime_error(std::string(error_code_name(code)) + ": " + text), code_(code), detail_(std::move(detail)) {}

void raise(ErrorCode code, const std::string& text, std::string detail) { throw Error(code, text, std::move(detail)); }

}  // namespace sapwood
