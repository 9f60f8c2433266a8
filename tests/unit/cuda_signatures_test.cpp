// SPDX-License-Identifier: Apache-2.0
// Nothing runs here: where a CUDA toolkit is on the include path, the compiler compares lib/cuda/driver.h with the toolkit's
// headers.
#if __has_include(<cudaTypedefs.h>)
#include <cudaTypedefs.h>

#include <type_traits>

#include "cuda/driver.h"

namespace sapwood::cuda {
namespace {

/// The same to the calling convention: pointers with pointers, integers and enums with those of their size.
template <class Ours, class Theirs>
constexpr bool same_value() {
    if (std::is_pointer_v<Ours> || std::is_pointer_v<Theirs>) return std::is_pointer_v<Ours> && std::is_pointer_v<Theirs>;
    const bool integers =
        (std::is_integral_v<Ours> || std::is_enum_v<Ours>)&&(std::is_integral_v<Theirs> || std::is_enum_v<Theirs>);
    return integers && sizeof(Ours) == sizeof(Theirs);
}

template <class Ours, class Theirs>
struct SameCall : std::false_type {};
template <class R, class... A, class S, class... B>
requires(sizeof...(A) == sizeof...(B)) struct SameCall<R (*)(A...), S (*)(B...)>
    : std::bool_constant<same_value<R, S>() && (same_value<A, B>() && ...)> {
};

// Not through Api: cuda.h makes macros of names such as cuMemAlloc.
#define SAPWOOD_COMPARE(name, version, arguments)                                \
    static_assert(SameCall<Result(*) arguments, PFN_##name##_v##version>::value, \
                  "driver.h differs from cudaTypedefs.h "                        \
                  "in " #name);
SAPWOOD_DRIVER_FUNCTIONS(SAPWOOD_COMPARE)
SAPWOOD_DRIVER_OPTIONAL_FUNCTIONS(SAPWOOD_COMPARE)

static_assert(kSuccess == CUDA_SUCCESS && kInvalidImage == CUDA_ERROR_INVALID_IMAGE &&
              kNoBinaryForGpu == CUDA_ERROR_NO_BINARY_FOR_GPU);
static_assert(kIllegalAddress == CUDA_ERROR_ILLEGAL_ADDRESS && kLaunchTimeout == CUDA_ERROR_LAUNCH_TIMEOUT);
static_assert(kAssert == CUDA_ERROR_ASSERT && kHardwareStackError == CUDA_ERROR_HARDWARE_STACK_ERROR);
static_assert(kLaunchFailed == CUDA_ERROR_LAUNCH_FAILED && kCaptureImplicit == CUDA_ERROR_STREAM_CAPTURE_IMPLICIT);
static_assert(kAttributeSms == CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT && kAttributeL2Bytes == CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE);
static_assert(kAttributeThreadsPerSm == CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_MULTIPROCESSOR);
static_assert(kAttributeMajor == CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR);
static_assert(kAttributeMinor == CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR);
static_assert(kAttributeSharedPerSm == CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_MULTIPROCESSOR);
static_assert(kAttributeRegistersPerSm == CU_DEVICE_ATTRIBUTE_MAX_REGISTERS_PER_MULTIPROCESSOR);
static_assert(kAttributeSharedPerBlockOptin == CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN);
static_assert(kAttributeReservedShared == CU_DEVICE_ATTRIBUTE_RESERVED_SHARED_MEMORY_PER_BLOCK);
static_assert(kLaunchOverlap == CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION);
static_assert(sizeof(LaunchAttribute) == sizeof(CUlaunchAttribute) && sizeof(LaunchConfig) == sizeof(CUlaunchConfig));
static_assert(offsetof(LaunchAttribute, value) == offsetof(CUlaunchAttribute, value));
static_assert(offsetof(LaunchConfig, stream) == offsetof(CUlaunchConfig, hStream));
static_assert(offsetof(LaunchConfig, attributes) == offsetof(CUlaunchConfig, attrs));
static_assert(offsetof(LaunchConfig, attribute_count) == offsetof(CUlaunchConfig, numAttrs));
static_assert(kTensorFloat16 == CU_TENSOR_MAP_DATA_TYPE_FLOAT16 && kTensorBfloat16 == CU_TENSOR_MAP_DATA_TYPE_BFLOAT16);
static_assert(kTensorSwizzle128 == CU_TENSOR_MAP_SWIZZLE_128B && kTensorPromote256 == CU_TENSOR_MAP_L2_PROMOTION_L2_256B);
static_assert(CU_TENSOR_MAP_INTERLEAVE_NONE == 0 && CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE == 0 && sizeof(CUtensorMap) == 128);
static_assert(kFunctionMaxThreads == CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK);
static_assert(kFunctionStaticShared == CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES);
static_assert(kFunctionMaxDynamicShared == CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES);
static_assert(kFunctionCarveout == CU_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT);
static_assert(kCarveoutMaxShared == CU_SHAREDMEM_CARVEOUT_MAX_SHARED && kStreamNonBlocking == CU_STREAM_NON_BLOCKING);
static_assert(kEventDefault == CU_EVENT_DEFAULT && kHostAllocPortable == CU_MEMHOSTALLOC_PORTABLE);
static_assert(kCaptureNone == CU_STREAM_CAPTURE_STATUS_NONE && kCaptureThreadLocal == CU_STREAM_CAPTURE_MODE_THREAD_LOCAL);
static_assert(kCaptureRelaxed == CU_STREAM_CAPTURE_MODE_RELAXED);

}  // namespace
}  // namespace sapwood::cuda
#endif
