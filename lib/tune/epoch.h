// SPDX-License-Identifier: Apache-2.0
// What a tuning record is valid for, on the side of the kernels.
//
// Records of a user's database name the digest of the kernels' code: change the code and they are hints, no results. Shipped
// records cannot follow every edit, so they name an epoch, a number in tuning/epoch that is raised by hand when the kernels' speed
// has changed enough to choose anew. The same file names the code that the epoch was last confirmed for; a test compares.
#pragma once

#include <string>
#include <string_view>

namespace sapwood::tune {

/// 16 hex digits over the templates that a GPU kernel is made of, without comments and white space: editing those keeps records.
const std::string& code_digest();
/// `text` without comments, and runs of white space as one blank.
std::string code_of(std::string_view text);

struct Epoch {
    int number = 0;
    std::string confirmed_for;  // a code_digest()
};
/// Of tuning/epoch, embedded.
const Epoch& tuning_epoch();

}  // namespace sapwood::tune
