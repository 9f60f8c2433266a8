// SPDX-License-Identifier: Apache-2.0
// What lib/cuda does without a GPU, a driver or NVRTC.
#include <doctest/doctest.h>

#include <set>

#include "cuda/device.h"
#include "cuda/ptxas_log.h"
#include "cuda/sm_table.h"
#include "sapwood/error.h"

using namespace sapwood;

TEST_CASE("cuda: a machine without a driver says so and opens nothing") {
    const std::string problem = cuda::driver_problem();
    if (problem.empty()) {
        MESSAGE("this machine has a CUDA driver; skipped");
        CHECK(cuda::device_count() >= 0);
        return;
    }
    CHECK(problem == cuda::driver_problem());
    CHECK(cuda::device_count() == 0);
    try {
        cuda::Device::open(0);
        FAIL("opened a device without a driver");
    } catch (const Error& error) {
        CHECK(error.code() == ErrorCode::kDriver);
        CHECK(std::string(error.what()).find(problem) != std::string::npos);
    }
}

TEST_CASE("cuda: the SM table is complete and consistent") {
    std::set<int> numbers;
    for (const cuda::SmFacts& sm : cuda::sm_table()) {
        CAPTURE(sm.number);
        CHECK(numbers.insert(sm.number).second);
        CHECK(sm.sms > 0);
        CHECK(sm.max_shared_per_sm - sm.max_shared_per_block_optin == 1024);  // what the driver reserves for each block
        CHECK(sm.max_registers_per_sm == 65536);
        CHECK((sm.max_threads_per_sm == 1536 || sm.max_threads_per_sm == 2048));
        CHECK(sm.l2_bytes >= (4 << 20));
        CHECK(sm.memory_bytes > sm.l2_bytes);
        CHECK(sm.memory_gb_per_s > 100);
    }
    CHECK(numbers == std::set<int>{80, 86, 87, 89, 90, 100, 103, 120, 121});
    CHECK(cuda::find_sm(75) == nullptr);
}

TEST_CASE("cuda: targets are named, taken apart and matched with devices") {
    CHECK(cuda::target_for(8, 0) == "sm_80");
    CHECK(cuda::target_for(8, 9) == "sm_89");
    CHECK(cuda::target_for(9, 0) == "sm_90a");
    CHECK(cuda::target_for(10, 0) == "sm_100a");
    CHECK(cuda::target_for(12, 1) == "sm_121a");

    CHECK(cuda::parse_target("sm_103f")->number() == 103);
    CHECK(cuda::parse_target("sm_103f")->suffix == 'f');
    CHECK(cuda::parse_target("sm_80")->suffix == 0);
    for (const char* bad : {"", "sm_", "sm_9", "sm_90b", "sm_90aa", "sm_1000", "compute_90", "host", "sm_-90"}) {
        CAPTURE(bad);
        CHECK_FALSE(cuda::parse_target(bad).has_value());
        CHECK_FALSE(cuda::target_runs_on(bad, 9, 0));
    }

    CHECK(cuda::target_runs_on("sm_80", 8, 6));
    CHECK_FALSE(cuda::target_runs_on("sm_86", 8, 0));
    CHECK_FALSE(cuda::target_runs_on("sm_80", 9, 0));
    CHECK(cuda::target_runs_on("sm_90a", 9, 0));
    CHECK_FALSE(cuda::target_runs_on("sm_100a", 10, 3));
    CHECK(cuda::target_runs_on("sm_100f", 10, 3));
}

TEST_CASE("cuda: a device is described without a GPU") {
    const cuda::DeviceInfo info = cuda::offline_device("sm_90a");
    CHECK(info.major == 9);
    CHECK(info.minor == 0);
    CHECK(info.sms == 132);
    CHECK(info.max_shared_per_block_optin == 227 * 1024);
    CHECK(info.reserved_shared_per_block == 1024);
    CHECK(info.driver_version == 0);
    try {
        cuda::offline_device("sm_70");
        FAIL("described an unknown SM");
    } catch (const Error& error) {
        CHECK(error.code() == ErrorCode::kUnsupportedDevice);
        CHECK(std::string(error.what()).find("sm_100a") != std::string::npos);
    }
}

TEST_CASE("cuda: figures of one kernel are read out of a ptxas log") {
    // As NVRTC 13.0 and 12.4 write it; the stack frame line has changed its beginning between the two.
    const std::string log =
        "k.cu(3): warning #177-D: variable \"unused\" was declared but never referenced\n"
        "ptxas info    : (C7511) Potential Performance Loss: wgmma.mma_async instructions are serialized in the function 'other'\n"
        "ptxas info    : 0 bytes gmem\n"
        "ptxas info    : Compiling entry function 'other' for 'sm_90a'\n"
        "ptxas info    : Function properties for other\n"
        "    96 bytes stack frame, 44 bytes spill stores, 36 bytes spill loads\n"
        "ptxas info    : Used 32 registers, used 1 barriers, 96 bytes cumulative stack size\n"
        "ptxas info    : Compiling entry function 'kernel' for 'sm_90a'\n"
        "ptxas info    : Function properties for kernel\n"
        "ptxas         .     16 bytes stack frame, 12 bytes spill stores, 8 bytes spill loads\n"
        "ptxas info    : Used 168 registers, used 3 barriers, 16 bytes cumulative stack size, 1056 bytes smem, 400 bytes cmem[0]\n"
        "ptxas info    : Compile time = 4.532 ms\n";
    const cuda::PtxasLog read = cuda::read_ptxas_log(log, "kernel");
    CHECK(read.found);
    CHECK(read.resources.registers == 168);
    CHECK(read.resources.static_shared == 1056);
    CHECK(read.resources.spill_bytes == 16);
    CHECK(read.resources.max_threads == 0);
    CHECK(read.remarks.find("#177-D") != std::string::npos);
    CHECK(read.remarks.find("C7511") != std::string::npos);
    CHECK(read.remarks.find("registers,") == std::string::npos);
    CHECK(read.remarks.find("Compile time") == std::string::npos);

    CHECK(cuda::read_ptxas_log(log, "other").resources.spill_bytes == 96);
    CHECK_FALSE(cuda::read_ptxas_log(log, "ker").found);
    CHECK_FALSE(cuda::read_ptxas_log("", "kernel").found);

    // Advice is kept however long the log is.
    std::string flood;
    for (int i = 0; i < 1000; ++i) flood += "k.cu(1): warning: the same\n";
    const std::string remarks = cuda::read_ptxas_log(flood + log, "kernel").remarks;
    CHECK(remarks.find("C7511") != std::string::npos);
    CHECK(remarks.find("801 more lines") != std::string::npos);
    CHECK(cuda::first_lines("a\nb\nc", 2) == "a\nb\n... 1 more lines\n");
    CHECK(cuda::first_lines("a\nb\n", 2) == "a\nb\n");
}
