// SPDX-License-Identifier: Apache-2.0
// What finds writes to registers that running warpgroup products read finds them, through branches and loops.
#include "compile/sass_hazards.h"

#include <doctest/doctest.h>

#include <initializer_list>

using namespace sapwood::test;

namespace {

/// A listing as cuobjdump prints it, from address 0 on.
std::string listing(std::initializer_list<const char*> lines) {
    std::string text = "\tcode for sm_90a\n";
    int address = 0;
    for (const char* line : lines) {
        char place[64];
        std::snprintf(place, sizeof place, "        /*%04x*/                   ", address);
        text += place + std::string(line) + " ;   /* 0x0000000000000000 */\n   /* 0x000fc00000000000 */\n";
        address += 16;
    }
    return text;
}
constexpr const char* kMultiply = "HGMMA.64x128x16.F32.BF16 R24, R120, gdesc[UR8].tnspB, R24, gsb0";

}  // namespace

TEST_CASE("machine code: operands of running products that are written are found") {
    CHECK(operand_hazards(listing({kMultiply, "F2FP.BF16.F32.PACK_AB R121, R4, R5", "WARPGROUP.DEPBAR.LE gsb0, 0x0", "EXIT"})) ==
          std::vector<std::string>{"10: F2FP.BF16.F32.PACK_AB R121, R4, R5"});
    CHECK(operand_hazards(listing({kMultiply, "LDS.128 R116, [R4]", "LDS.128 R117, [R4]", "IMAD.WIDE R118, R4, R5, R6",
                                   "SHFL.BFLY PT, R123, R4, 0x1, 0x1f", "EXIT"}))
              .size() == 2);
    CHECK(operand_hazards(listing({kMultiply, "ISETP.GE.AND P0, PT, R120, R121, PT", "STG.E [R120.64], R121", "BRA 0x30",
                                   "EXIT"})) == std::vector<std::string>{});
}

TEST_CASE("machine code: what has been waited for may be written, what is still running may not") {
    CHECK(operand_hazards(listing({kMultiply, "WARPGROUP.DEPBAR.LE gsb0, 0x0", "MOV R120, R4", "EXIT"})).empty());
    const char* other = "HGMMA.64x128x16.F32.BF16 R24, R140, gdesc[UR8].tnspB, R24, gsb0";
    const auto found =
        operand_hazards(listing({kMultiply, other, "WARPGROUP.DEPBAR.LE gsb0, 0x1", "MOV R120, R4", "MOV R140, R4", "EXIT"}));
    CHECK(found == std::vector<std::string>{"40: MOV R140, R4"});
    const char* shared = "HGMMA.64x128x16.F32.BF16 R24, gdesc[UR8], R24, gsb0";
    CHECK(operand_hazards(listing({shared, "MOV R120, R4", "EXIT"})).empty());
}

TEST_CASE("machine code: a write ahead of its products in the listing is found where a loop leads to it") {
    CHECK(operand_hazards(listing({"MOV R122, R4", "@!P0 BRA 0x50", kMultiply, "@P1 BRA 0x0", "WARPGROUP.DEPBAR.LE gsb0, 0x0",
                                   "EXIT"})) == std::vector<std::string>{"0: MOV R122, R4"});
    CHECK(operand_hazards(listing({"MOV R122, R4", "@!P0 BRA 0x50", kMultiply, "WARPGROUP.DEPBAR.LE gsb0, 0x0", "BRA 0x0", "EXIT"}))
              .empty());
}
