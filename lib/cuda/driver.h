// SPDX-License-Identifier: Apache-2.0
// The CUDA driver as a table of functions found at run time. Private to this room: no other room, and no CUDA header, is named
// here, so that the library builds and starts where there is neither a toolkit nor a GPU.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <string>

namespace sapwood::cuda {

// The driver's own types, reduced to what the calling convention sees: opaque pointers, and enums as int.
using Result = int;                        // CUresult
using DeviceHandle = int;                  // CUdevice
using DevicePointer = unsigned long long;  // CUdeviceptr_v2
using Context = struct ContextTag*;
using Module = struct ModuleTag*;
using Function = struct FunctionTag*;
using Stream = struct StreamTag*;
using Event = struct EventTag*;
using Graph = struct GraphTag*;
using GraphExec = struct GraphExecTag*;

// CUresult values that Sapwood tells apart (cuda.h 13.0).
inline constexpr Result kSuccess = 0, kInvalidImage = 200, kNoBinaryForGpu = 209, kIllegalAddress = 700, kLaunchTimeout = 702,
                        kAssert = 710, kHardwareStackError = 714, kLaunchFailed = 719, kCaptureImplicit = 906;

// CUdevice_attribute.
inline constexpr int kAttributeSms = 16, kAttributeL2Bytes = 38, kAttributeThreadsPerSm = 39, kAttributeMajor = 75,
                     kAttributeMinor = 76, kAttributeSharedPerSm = 81, kAttributeRegistersPerSm = 82,
                     kAttributeSharedPerBlockOptin = 97, kAttributeReservedShared = 111;

// CUfunction_attribute.
inline constexpr int kFunctionMaxThreads = 0, kFunctionStaticShared = 1, kFunctionMaxDynamicShared = 8, kFunctionCarveout = 9;
inline constexpr int kCarveoutMaxShared = 100;

// CUlaunchAttributeID.
inline constexpr int kLaunchOverlap = 6;  // CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION

/// CUlaunchAttribute: an id, then a union of 64 bytes that starts with the value.
struct LaunchAttribute {
    int id = 0, reserved = 0;
    int value = 0;
    int rest[15] = {};
};
/// CUlaunchConfig.
struct LaunchConfig {
    unsigned grid_x = 1, grid_y = 1, grid_z = 1, block_x = 1, block_y = 1, block_z = 1, shared_bytes = 0;
    Stream stream = nullptr;
    LaunchAttribute* attributes = nullptr;
    unsigned attribute_count = 0;
};

// CUtensorMapDataType and the other enums of cuTensorMapEncodeTiled; 0 is "none" in all of them.
inline constexpr int kTensorFloat16 = 6, kTensorBfloat16 = 9, kTensorSwizzle128 = 3, kTensorPromote256 = 3;

inline constexpr unsigned kStreamNonBlocking = 1, kEventDefault = 0, kHostAllocPortable = 1;
inline constexpr int kCaptureNone = 0;                              // CUstreamCaptureStatus
inline constexpr int kCaptureThreadLocal = 1, kCaptureRelaxed = 2;  // CUstreamCaptureMode

// X(name, version, arguments): the version is that of the PFN_<name>_v<version> in cudaTypedefs.h that the arguments are copied
// from. It goes to cuGetProcAddress, which then returns this very variant (cuMemAlloc 3020 is the symbol cuMemAlloc_v2) whatever
// newer variants the driver also has. tests/unit/cuda_signatures_test.cpp compares every line with the header where a toolkit is
// present.
#define SAPWOOD_DRIVER_FUNCTIONS(X)                                                                                         \
    X(cuGetErrorName, 6000, (Result error, const char** text))                                                              \
    X(cuGetErrorString, 6000, (Result error, const char** text))                                                            \
    X(cuInit, 2000, (unsigned int flags))                                                                                   \
    X(cuDriverGetVersion, 2020, (int* version))                                                                             \
    X(cuDeviceGet, 2000, (DeviceHandle * device, int ordinal))                                                              \
    X(cuDeviceGetCount, 2000, (int* count))                                                                                 \
    X(cuDeviceGetName, 2000, (char* name, int length, DeviceHandle device))                                                 \
    X(cuDeviceTotalMem, 3020, (std::size_t * bytes, DeviceHandle device))                                                   \
    X(cuDeviceGetAttribute, 2000, (int* value, int attribute, DeviceHandle device))                                         \
    X(cuDevicePrimaryCtxRetain, 7000, (Context * context, DeviceHandle device))                                             \
    X(cuDevicePrimaryCtxRelease, 11000, (DeviceHandle device))                                                              \
    X(cuCtxGetCurrent, 4000, (Context * context))                                                                           \
    X(cuCtxPushCurrent, 4000, (Context context))                                                                            \
    X(cuCtxPopCurrent, 4000, (Context * context))                                                                           \
    X(cuMemGetInfo, 3020, (std::size_t * free_bytes, std::size_t * total_bytes))                                            \
    X(cuMemAlloc, 3020, (DevicePointer * pointer, std::size_t bytes))                                                       \
    X(cuMemFree, 3020, (DevicePointer pointer))                                                                             \
    X(cuMemHostAlloc, 2020, (void** pointer, std::size_t bytes, unsigned int flags))                                        \
    X(cuMemFreeHost, 2000, (void* pointer))                                                                                 \
    X(cuMemsetD8Async, 3020, (DevicePointer to, unsigned char value, std::size_t count, Stream stream))                     \
    X(cuMemcpyHtoDAsync, 3020, (DevicePointer to, const void* from, std::size_t bytes, Stream stream))                      \
    X(cuMemcpyDtoHAsync, 3020, (void* to, DevicePointer from, std::size_t bytes, Stream stream))                            \
    X(cuModuleLoadData, 2000, (Module * module, const void* image))                                                         \
    X(cuModuleUnload, 2000, (Module module))                                                                                \
    X(cuModuleGetFunction, 2000, (Function * function, Module module, const char* name))                                    \
    X(cuFuncGetAttribute, 2020, (int* value, int attribute, Function function))                                             \
    X(cuFuncSetAttribute, 9000, (Function function, int attribute, int value))                                              \
    X(cuOccupancyMaxActiveBlocksPerMultiprocessor, 6050, (int* blocks, Function function, int threads, std::size_t shared)) \
    X(cuLaunchKernel, 4000,                                                                                                 \
      (Function function, unsigned int grid_x, unsigned int grid_y, unsigned int grid_z, unsigned int block_x,              \
       unsigned int block_y, unsigned int block_z, unsigned int shared, Stream stream, void** parameters, void** extra))    \
    X(cuStreamCreate, 2000, (Stream * stream, unsigned int flags))                                                          \
    X(cuStreamDestroy, 4000, (Stream stream))                                                                               \
    X(cuStreamSynchronize, 2000, (Stream stream))                                                                           \
    X(cuStreamIsCapturing, 10000, (Stream stream, int* status))                                                             \
    X(cuStreamBeginCapture, 10010, (Stream stream, int mode))                                                               \
    X(cuStreamEndCapture, 10000, (Stream stream, Graph * graph))                                                            \
    X(cuEventCreate, 2000, (Event * event, unsigned int flags))                                                             \
    X(cuEventDestroy, 4000, (Event event))                                                                                  \
    X(cuEventRecord, 2000, (Event event, Stream stream))                                                                    \
    X(cuEventSynchronize, 2000, (Event event))                                                                              \
    X(cuEventElapsedTime, 2000, (float* milliseconds, Event start, Event stop))                                             \
    X(cuGraphInstantiateWithFlags, 11040, (GraphExec * exec, Graph graph, unsigned long long flags))                        \
    X(cuGraphLaunch, 10000, (GraphExec exec, Stream stream))                                                                \
    X(cuGraphExecDestroy, 10000, (GraphExec exec))                                                                          \
    X(cuGraphDestroy, 10000, (Graph graph))

// Null where the driver is older than the function.
#define SAPWOOD_DRIVER_OPTIONAL_FUNCTIONS(X)                                                                              \
    X(cuFuncLoad, 12040, (Function function))                                                                             \
    X(cuThreadExchangeStreamCaptureMode, 10010, (int* mode))                                                              \
    X(cuLaunchKernelEx, 11060, (const LaunchConfig* config, Function function, void** parameters, void** extra))          \
    X(cuTensorMapEncodeTiled, 12000,                                                                                      \
      (void* map, int type, unsigned int rank, void* address, const std::uint64_t* extents, const std::uint64_t* strides, \
       const unsigned int* box, const unsigned int* element_strides, int interleave, int swizzle, int l2_promotion, int fill))

namespace detail {
extern std::atomic<bool> forked_after_init;
}

struct Api {
#define SAPWOOD_DECLARE(name, version, arguments) Result(*name) arguments = nullptr;
    SAPWOOD_DRIVER_FUNCTIONS(SAPWOOD_DECLARE)
    SAPWOOD_DRIVER_OPTIONAL_FUNCTIONS(SAPWOOD_DECLARE)
#undef SAPWOOD_DECLARE
};

/// The table after cuInit; throws kDriver with driver_problem() when there is no usable driver.
const Api& api();
/// The table, or null where nothing may be called: no driver, or a child forked after the driver was initialised. For destructors.
const Api* api_if_alive() noexcept;
int driver_version() noexcept;  // of the CUDA version that the driver supports: 13000; 0 without a driver

/// True in a child forked after the driver was initialised; set by a fork handler, so that a launch can afford to ask.
inline bool forked() noexcept { return detail::forked_after_init.load(std::memory_order_relaxed); }

/// Throws kDriver: "<call>: <CUDA_ERROR_NAME> (<number>, <driver's text>); <context>".
[[noreturn]] void fail(Result result, const char* call, const std::string& context = {});
inline void check(Result result, const char* call) {
    if (result != kSuccess) [[unlikely]]
        fail(result, call);
}

/// Makes `context` current on this thread for a scope; does nothing when it already is, the usual case in a CUDA application.
class ContextGuard {
public:
    ContextGuard(const Api& api, Context context) : api_(api) {
        if (forked()) fail(kSuccess, "");
        Context current = nullptr;
        check(api_.cuCtxGetCurrent(&current), "cuCtxGetCurrent");
        if (current == context) return;
        check(api_.cuCtxPushCurrent(context), "cuCtxPushCurrent");
        pushed_ = true;
    }
    ~ContextGuard() {
        Context popped = nullptr;
        if (pushed_) api_.cuCtxPopCurrent(&popped);
    }
    ContextGuard(const ContextGuard&) = delete;
    ContextGuard& operator=(const ContextGuard&) = delete;

private:
    const Api& api_;
    bool pushed_ = false;
};

/// Lets this thread load and allocate while another one captures a graph in the global mode, which forbids it to all threads that
/// do not say otherwise: a kernel that is compiled in the background must not spoil a capture elsewhere.
class RelaxedCapture {
public:
    explicit RelaxedCapture(const Api& api) : api_(api) { exchange(); }
    ~RelaxedCapture() { exchange(); }
    RelaxedCapture(const RelaxedCapture&) = delete;
    RelaxedCapture& operator=(const RelaxedCapture&) = delete;

private:
    void exchange() {
        if (api_.cuThreadExchangeStreamCaptureMode != nullptr) api_.cuThreadExchangeStreamCaptureMode(&mode_);
    }
    const Api& api_;
    int mode_ = kCaptureRelaxed;
};

/// For destructors: calls `release(api)` with `context` current, ignores every error (at exit the driver answers
/// CUDA_ERROR_DEINITIALIZED), and calls nothing in a forked child, where the parent's handles mean nothing.
template <class Release>
void release_quietly(Context context, Release&& release) noexcept {
    const Api* api = api_if_alive();
    Context current = nullptr;
    if (api == nullptr || api->cuCtxGetCurrent(&current) != kSuccess) return;
    const bool push = current != context;
    if (push && api->cuCtxPushCurrent(context) != kSuccess) return;
    release(*api);
    if (push) api->cuCtxPopCurrent(&current);
}

}  // namespace sapwood::cuda
