// SPDX-License-Identifier: Apache-2.0
#include "terminal.h"

#include <unistd.h>

#include "common.h"

namespace sapwood::tool {

Progress::Progress(std::string title, std::size_t total)
    : title_(std::move(title)), total_(total), terminal_(isatty(STDERR_FILENO) == 1), started_(now_ms()) {}

Progress::~Progress() { clear(); }

void Progress::clear() {
    if (drawn_) std::fputs("\r\033[K", stderr);
    drawn_ = false;
}

void Progress::step(std::size_t done, const std::string& doing) {
    const double now = now_ms();
    if (now - started_ < 1000 || now - shown_ < (terminal_ ? 100 : 5000)) return;
    shown_ = now;
    if (!terminal_) {
        std::fprintf(stderr, "%s: %zu of %zu, %.0f s, %s\n", title_.c_str(), done, total_, (now - started_) / 1e3, doing.c_str());
        return;
    }
    constexpr std::size_t kWidth = 30;
    const std::size_t filled = total_ ? std::min(done, total_) * kWidth / total_ : 0;
    const std::string bar = std::string(filled, '#') + std::string(kWidth - filled, '.');
    std::fprintf(stderr, "\r\033[K%s [%s] %zu/%zu %.48s", title_.c_str(), bar.c_str(), done, total_, doing.c_str());
    std::fflush(stderr);
    drawn_ = true;
}

Table::Table(std::vector<Column> columns, std::FILE* to) : columns_(std::move(columns)), to_(to) {}

void Table::row(const std::vector<std::string>& cells) {
    const auto print = [&](auto&& cell) {
        std::string line;
        for (std::size_t i = 0; i < columns_.size(); ++i) line += (i ? "  " : "") + text("%*s", columns_[i].width, cell(i).c_str());
        line.erase(line.find_last_not_of(' ') + 1);
        std::fprintf(to_, "%s\n", line.c_str());
    };
    if (!header_) print([&](std::size_t i) { return columns_[i].name; });
    header_ = true;
    print([&](std::size_t i) { return i < cells.size() ? cells[i] : std::string(); });
    std::fflush(to_);
}

}  // namespace sapwood::tool
