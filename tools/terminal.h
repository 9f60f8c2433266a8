// SPDX-License-Identifier: Apache-2.0
// Progress on standard error and tables on standard output.
#pragma once

#include <cstdio>
#include <string>
#include <vector>

namespace sapwood::tool {

/// Shows nothing in the first second. Then a bar that redraws itself on a terminal, and a plain line every few seconds elsewhere.
class Progress {
public:
    Progress(std::string title, std::size_t total);
    ~Progress();
    /// `done` of `total` steps are complete; `doing` says what comes now.
    void step(std::size_t done, const std::string& doing);
    /// Removes the bar, so that something else can be printed; the next step draws it again.
    void clear();

private:
    std::string title_;
    std::size_t total_;
    bool terminal_, drawn_ = false;
    double started_, shown_ = 0;
};

/// Columns of fixed width, so that each row can be printed as soon as it is known. A text that is too long pushes the rest aside.
class Table {
public:
    struct Column {
        std::string name;
        int width;  // negative: left-aligned
    };
    Table(std::vector<Column> columns, std::FILE* to = stdout);
    void row(const std::vector<std::string>& cells);  // the header comes before the first row

private:
    std::vector<Column> columns_;
    std::FILE* to_;
    bool header_ = false;
};

}  // namespace sapwood::tool
