// SPDX-License-Identifier: Apache-2.0
#include "cuda/ptxas_log.h"

#include <algorithm>
#include <charconv>
#include <cstddef>

namespace sapwood::cuda {
namespace {

/// Calls `each(line)` for every line, without its end.
template <class Each>
void for_lines(std::string_view text, Each&& each) {
    while (!text.empty()) {
        const std::size_t end = text.find('\n');
        std::string_view line = text.substr(0, end);
        if (line.ends_with('\r')) line.remove_suffix(1);
        each(line);
        if (end == std::string_view::npos) return;
        text.remove_prefix(end + 1);
    }
}

/// The number that stands before `unit`, as in "1024 bytes smem"; 0 if the line has no such figure.
int number_before(std::string_view line, std::string_view unit) {
    const std::size_t at = line.find(unit);
    if (at == std::string_view::npos) return 0;
    std::size_t end = at;
    while (end > 0 && line[end - 1] == ' ') --end;
    std::size_t begin = end;
    while (begin > 0 && line[begin - 1] >= '0' && line[begin - 1] <= '9') --begin;
    int value = 0;
    std::from_chars(line.data() + begin, line.data() + end, value);
    return value;
}

bool contains(std::string_view line, std::string_view part) { return line.find(part) != std::string_view::npos; }

/// "Compiling entry function 'name' for 'sm_90a'" or "Function properties for name": the name, or nothing.
std::string_view named_function(std::string_view line) {
    if (const std::size_t at = line.find("Compiling entry function '"); at != std::string_view::npos) {
        const std::string_view rest = line.substr(at + 26);
        return rest.substr(0, rest.find('\''));
    }
    if (const std::size_t at = line.find("Function properties for "); at != std::string_view::npos) {
        std::string_view rest = line.substr(at + 24);
        while (rest.ends_with(' ')) rest.remove_suffix(1);
        return rest;
    }
    return {};
}

}  // namespace

PtxasLog read_ptxas_log(std::string_view log, std::string_view entry) {
    PtxasLog result;
    std::string others;
    bool ours = false;
    int spilled = 0;
    for_lines(log, [&](std::string_view line) {
        if (const std::string_view name = named_function(line); !name.empty()) {
            ours = name == entry;
        } else if (contains(line, "bytes stack frame")) {
            if (!ours) return;
            spilled = std::max(number_before(line, "bytes spill stores"), number_before(line, "bytes spill loads"));
            result.resources.spill_bytes = number_before(line, "bytes stack frame");
        } else if (contains(line, "Used ") && contains(line, " registers")) {
            if (!ours) return;
            result.found = true;
            result.resources.registers = number_before(line, "registers");
            result.resources.static_shared = number_before(line, "bytes smem");
            // Frames of functions that were not inlined are local memory of the thread as well.
            result.resources.spill_bytes =
                std::max(result.resources.spill_bytes, number_before(line, "bytes cumulative stack size"));
        } else if (line.starts_with("ptxas ") && contains(line, "(C")) {
            result.remarks.append(line).push_back('\n');  // e.g. wgmma serialised: a slow kernel that looks fine otherwise
        } else if (!line.empty() && !contains(line, "bytes gmem") && !contains(line, "ptxas info    : Compile time")) {
            others.append(line).push_back('\n');
        }
    });
    result.remarks += first_lines(others, 200);
    // Spill slots lie in the stack frame; a log with traffic and no frame would still mean local memory.
    if (result.resources.spill_bytes == 0) result.resources.spill_bytes = spilled;
    return result;
}

std::string first_lines(std::string_view text, int count) {
    std::string kept;
    int seen = 0;
    for_lines(text, [&](std::string_view line) {
        if (++seen <= count) kept.append(line).push_back('\n');
    });
    if (seen > count) kept += "... " + std::to_string(seen - count) + " more lines\n";
    return kept;
}

}  // namespace sapwood::cuda
