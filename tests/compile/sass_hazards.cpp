// SPDX-License-Identifier: Apache-2.0
#include "compile/sass_hazards.h"

#include <array>
#include <bitset>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <map>
#include <memory>
#include <span>
#include <sstream>
#include <string_view>

#include "jit/disk_cache.h"

namespace sapwood::test {
namespace {

using Registers = std::bitset<256>;

struct Instruction {
    unsigned address = 0;
    std::string text, opcode;
    bool predicated = false;
    std::vector<std::string> operands;
};

bool starts(std::string_view text, std::string_view with) { return text.substr(0, with.size()) == with; }
bool has(std::string_view text, std::string_view part) { return text.find(part) != text.npos; }

std::vector<Instruction> parse(const std::string& listing) {
    std::vector<Instruction> all;
    std::istringstream lines(listing);
    for (std::string line; std::getline(lines, line);) {
        const auto open = line.find("/*"), close = line.find("*/"), end = line.find(';');
        if (open == line.npos || end == line.npos || close > end || line[open + 2] == ' ') continue;
        Instruction it;
        it.address = static_cast<unsigned>(std::strtoul(line.c_str() + open + 2, nullptr, 16));
        std::istringstream words(line.substr(close + 2, end - close - 2));
        words >> it.opcode;
        it.text = it.opcode;
        if (it.opcode[0] == '@') {
            it.predicated = true;
            words >> it.opcode;
            it.text += ' ' + it.opcode;
        }
        for (std::string operand; std::getline(words >> std::ws, operand, ',');) {
            operand.erase(operand.find_last_not_of(' ') + 1);
            it.text += (it.operands.empty() ? " " : ", ") + operand;
            it.operands.push_back(operand);
        }
        all.push_back(it);
    }
    return all;
}

/// The number of a plain register such as R17, R17.reuse or R17.64; nothing for RZ, UR4, [R4].
std::optional<unsigned> register_of(const std::string& operand) {
    if (operand.size() < 2 || operand[0] != 'R' || operand[1] < '0' || operand[1] > '9') return {};
    return static_cast<unsigned>(std::strtoul(operand.c_str() + 1, nullptr, 10));
}

Registers range(unsigned first, unsigned count) {
    Registers set;
    for (unsigned i = first; i < first + count && i < set.size(); ++i) set.set(i);
    return set;
}

Registers written(const Instruction& it) {
    for (const char* op : {"ST", "RED", "BAR", "BRA", "SYNCS", "U", "EXIT", "RET", "WARP", "HGMMA", "LDGSTS", "ARRIVES", "R2P"})
        if (starts(it.opcode, op)) return {};
    auto first = it.operands.empty() ? std::nullopt : register_of(it.operands[0]);
    if (!first && it.operands.size() > 1 && it.operands[0][0] == 'P') first = register_of(it.operands[1]);  // a predicate before it
    if (!first) return {};
    const bool pair = has(it.opcode, ".64") || has(it.opcode, "WIDE");
    return range(*first, has(it.opcode, ".128") ? 4 : pair ? 2 : 1);
}

/// Registers that products read: of those not yet committed, and of committed groups, the newest first; the last place is for all
/// that are older.
struct Reading {
    Registers open;
    std::array<Registers, 4> groups;

    Registers all() const { return open | groups[0] | groups[1] | groups[2] | groups[3]; }
    void commit() {
        groups = {open, groups[0], groups[1], groups[2] | groups[3]};
        open.reset();
    }
    void wait(unsigned pending) {
        for (std::size_t i = pending; i < groups.size(); ++i) groups[i].reset();
    }
    /// Whether that added something.
    bool take(const Reading& other) {
        const Reading before = *this;
        open |= other.open;
        for (std::size_t i = 0; i < groups.size(); ++i) groups[i] |= other.groups[i];
        return open != before.open || groups != before.groups;
    }
};

void execute(Reading& state, const Instruction& it) {
    if (starts(it.opcode, "HGMMA")) {  // D, A, B …: A is a register, or a descriptor
        if (const auto a = it.operands.size() > 1 ? register_of(it.operands[1]) : std::nullopt) state.open |= range(*a, 4);
        if (has(it.text, "gsb0")) state.commit();
    } else if (starts(it.opcode, "WARPGROUP.DEPBAR") && it.operands.size() > 1) {
        state.wait(static_cast<unsigned>(std::strtoul(it.operands[1].c_str(), nullptr, 16)));
    }
}

std::string run(const std::string& command) {
    const std::unique_ptr<FILE, int (*)(FILE*)> pipe(popen(command.c_str(), "r"), pclose);
    std::string out;
    std::array<char, 65536> part;
    for (std::size_t n; pipe && (n = std::fread(part.data(), 1, part.size(), pipe.get())) > 0;) out.append(part.data(), n);
    return out;
}

}  // namespace

std::vector<std::string> operand_hazards(const std::string& listing) {
    const std::vector<Instruction> code = parse(listing);
    std::map<unsigned, std::size_t> at;
    for (std::size_t i = 0; i < code.size(); ++i) at[code[i].address] = i;
    std::vector<std::optional<Reading>> before(code.size());
    std::vector<std::pair<std::size_t, Reading>> paths = {{0, {}}};
    while (!paths.empty()) {
        auto [i, state] = paths.back();
        paths.pop_back();
        for (; i < code.size(); ++i) {
            const bool known = before[i].has_value();
            if (!known) before[i].emplace();
            if (!before[i]->take(state) && known) break;
            state = *before[i];
            const Instruction& it = code[i];
            execute(state, it);
            if (starts(it.opcode, "BRA") && !it.operands.empty()) {
                const std::string& to = it.operands.back();
                const auto target = at.find(static_cast<unsigned>(std::strtoul(to.c_str(), nullptr, 16)));
                if (target != at.end()) paths.emplace_back(target->second, state);
                if (!it.predicated && it.operands.size() == 1) break;  // always taken
            }
            if ((starts(it.opcode, "EXIT") || starts(it.opcode, "RET")) && !it.predicated) break;
        }
    }
    std::vector<std::string> found;
    for (std::size_t i = 0; i < code.size(); ++i) {
        if (!before[i] || (written(code[i]) & before[i]->all()).none()) continue;
        std::ostringstream line;
        line << std::hex << code[i].address << ": " << code[i].text;
        found.push_back(line.str());
    }
    return found;
}

std::optional<std::vector<std::string>> operand_hazards_of_cache(const std::filesystem::path& root) {
    if (run("command -v cuobjdump").empty()) return {};
    const auto file = root / "kernel.cubin";
    std::vector<std::string> found;
    for (const jit::CacheEntryInfo& entry : jit::DiskCache(root).list(false)) {
        if (entry.target != "sm_90a") continue;
        std::ifstream in(entry.path, std::ios::binary);
        const std::vector<char> bytes{std::istreambuf_iterator<char>(in), {}};
        std::string fault;
        const auto artifact = jit::decode_entry(std::as_bytes(std::span(bytes)), nullptr, &fault);
        if (!artifact) {
            found.push_back(entry.name + ": " + fault);
            continue;
        }
        std::ofstream(file, std::ios::binary)
            .write(reinterpret_cast<const char*>(artifact->payload.data()), static_cast<std::streamsize>(artifact->payload.size()));
        const std::string listing = run("cuobjdump -sass '" + file.string() + "'");
        if (!has(listing, "EXIT")) found.push_back(entry.name + ": no machine code in it");
        for (const std::string& line : operand_hazards(listing)) found.push_back(entry.name + ": " + line);
    }
    std::filesystem::remove(file);
    return found;
}

}  // namespace sapwood::test
