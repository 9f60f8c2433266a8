// SPDX-License-Identifier: Apache-2.0
#include "cuda/device.h"

#include <algorithm>
#include <utility>

#include "base/error.h"
#include "cuda/driver.h"
#include "cuda/module.h"

namespace sapwood::cuda {

struct Device::Impl {
    DeviceInfo info;
    std::shared_ptr<PrimaryContext> context;

    const Api& api() const { return context->api; }
    ContextGuard enter() const { return ContextGuard(context->api, context->handle); }
};

namespace {

DeviceInfo query(const Api& api, DeviceHandle device, int ordinal) {
    const auto attribute = [&](int which) {
        int value = 0;
        check(api.cuDeviceGetAttribute(&value, which, device), "cuDeviceGetAttribute");
        return value;
    };
    char name[256] = {};
    std::size_t memory = 0;
    check(api.cuDeviceGetName(name, sizeof name - 1, device), "cuDeviceGetName");
    check(api.cuDeviceTotalMem(&memory, device), "cuDeviceTotalMem");
    return DeviceInfo{.ordinal = ordinal,
                      .name = name,
                      .major = attribute(kAttributeMajor),
                      .minor = attribute(kAttributeMinor),
                      .sms = attribute(kAttributeSms),
                      .max_shared_per_block_optin = attribute(kAttributeSharedPerBlockOptin),
                      .max_shared_per_sm = attribute(kAttributeSharedPerSm),
                      .reserved_shared_per_block = attribute(kAttributeReservedShared),
                      .max_registers_per_sm = attribute(kAttributeRegistersPerSm),
                      .max_threads_per_sm = attribute(kAttributeThreadsPerSm),
                      .l2_bytes = attribute(kAttributeL2Bytes),
                      .memory_bytes = static_cast<std::int64_t>(memory),
                      .driver_version = driver_version()};
}

Stream stream_of(void* stream) { return static_cast<Stream>(stream); }
Event event_of(void* event) { return static_cast<Event>(event); }

}  // namespace

Device::Device(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Device::~Device() = default;
const DeviceInfo& Device::info() const noexcept { return impl_->info; }

std::shared_ptr<Device> Device::open(int ordinal) {
    const Api& driver = api();
    int count = 0;
    check(driver.cuDeviceGetCount(&count), "cuDeviceGetCount");
    if (ordinal < 0 || ordinal >= count)
        raise(ErrorCode::kUnsupportedDevice, "device " + std::to_string(ordinal) + " was asked for; the driver shows " +
                                                 std::to_string(count) + " (numbered from 0; CUDA_VISIBLE_DEVICES may hide some)");
    DeviceHandle handle = 0;
    check(driver.cuDeviceGet(&handle, ordinal), "cuDeviceGet");
    auto impl = std::make_unique<Impl>();
    impl->info = query(driver, handle, ordinal);
    if (impl->info.major < 8)
        raise(ErrorCode::kUnsupportedDevice, impl->info.name + " (device " + std::to_string(ordinal) + ") is SM " +
                                                 std::to_string(impl->info.major) + "." + std::to_string(impl->info.minor) +
                                                 "; Sapwood's kernels need 8.0 or newer: use another device or the host target");
    impl->context = std::make_shared<PrimaryContext>(handle);
    return std::shared_ptr<Device>(new Device(std::move(impl)));
}

std::uint64_t Device::allocate(std::size_t bytes) {
    const auto scope = impl_->enter();
    DevicePointer pointer = 0;
    const Result result = impl_->api().cuMemAlloc(&pointer, std::max<std::size_t>(bytes, 1));  // the driver refuses 0
    if (result == kSuccess) return pointer;
    std::string context = std::to_string(bytes) + " bytes were asked for";
    std::size_t available = 0, total = 0;
    if (impl_->api().cuMemGetInfo(&available, &total) == kSuccess)
        context += "; " + std::to_string(available) + " of " + std::to_string(total) + " are free on " + impl_->info.name;
    fail(result, "cuMemAlloc", context);
}

void Device::free(std::uint64_t pointer) noexcept {
    if (pointer == 0) return;
    release_quietly(impl_->context->handle, [=](const Api& driver) { driver.cuMemFree(pointer); });
}

void Device::fill(std::uint64_t pointer, std::uint8_t value, std::size_t bytes, void* stream) {
    if (bytes == 0) return;
    const auto scope = impl_->enter();
    check(impl_->api().cuMemsetD8Async(pointer, value, bytes, stream_of(stream)), "cuMemsetD8Async");
}

void Device::copy_to_device(std::uint64_t to, const void* from, std::size_t bytes, void* stream) {
    if (bytes == 0) return;
    const auto scope = impl_->enter();
    // From pageable memory the driver has read `from` into a staging buffer of its own when this returns. Not so while `stream`
    // captures: a graph then keeps the address, whatever kind of memory it is.
    check(impl_->api().cuMemcpyHtoDAsync(to, from, bytes, stream_of(stream)), "cuMemcpyHtoDAsync");
}

void Device::copy_to_host(void* to, std::uint64_t from, std::size_t bytes, void* stream) {
    if (bytes == 0) return;
    const auto scope = impl_->enter();
    check(impl_->api().cuMemcpyDtoHAsync(to, from, bytes, stream_of(stream)), "cuMemcpyDtoHAsync");
    check(impl_->api().cuStreamSynchronize(stream_of(stream)), "cuStreamSynchronize");
}

void* Device::allocate_pinned(std::size_t bytes) {
    const auto scope = impl_->enter();
    void* pointer = nullptr;
    if (const Result result = impl_->api().cuMemHostAlloc(&pointer, std::max<std::size_t>(bytes, 1), kHostAllocPortable);
        result != kSuccess)
        fail(result, "cuMemHostAlloc",
             std::to_string(bytes) +
                 " bytes of pinned host memory were asked for; the limit on locked memory may be low (ulimit -l)");
    return pointer;
}

void Device::free_pinned(void* pointer) noexcept {
    if (pointer == nullptr) return;
    release_quietly(impl_->context->handle, [=](const Api& driver) { driver.cuMemFreeHost(pointer); });
}

void Device::synchronize(void* stream) {
    const auto scope = impl_->enter();
    check(impl_->api().cuStreamSynchronize(stream_of(stream)), "cuStreamSynchronize");
}

bool Device::capturing(void* stream) {
    const auto scope = impl_->enter();
    int status = kCaptureNone;
    const Result result = impl_->api().cuStreamIsCapturing(stream_of(stream), &status);
    // Said of the null stream while a stream that synchronises with it captures: nothing may be enqueued there either.
    if (result == kCaptureImplicit) return true;
    check(result, "cuStreamIsCapturing");
    return status != kCaptureNone;  // an invalidated capture is still one until it is ended
}

std::unique_ptr<jit::LoadedKernel> Device::load(const jit::Artifact& artifact, std::uint32_t dynamic_shared) {
    return std::make_unique<CudaKernel>(impl_->context, impl_->info, artifact, dynamic_shared);
}

void Device::encode_tensor_map(const TensorView& view, void* map) {
    const auto scope = impl_->enter();
    const Api& driver = impl_->api();
    if (driver.cuTensorMapEncodeTiled == nullptr)
        raise(ErrorCode::kUnsupportedDevice,
              "the CUDA driver has no cuTensorMapEncodeTiled; this kernel needs driver 525.60 or newer");
    const auto bytes = [](std::int64_t value) { return static_cast<std::uint64_t>(value); };
    // 64 elements, rows, groups of 64 elements, heads: a box is then a tile, group by group. Of several heads: these before the
    // groups.
    const auto panels = static_cast<unsigned>(view.dim / 64);
    std::uint64_t extents[5] = {64, bytes(std::max<std::int64_t>(view.rows, 1)), panels, bytes(view.heads)};
    std::uint64_t strides[4] = {bytes(view.token_stride), 128, bytes(view.head_stride)};
    unsigned rank = 4, box[5] = {64, static_cast<unsigned>(view.box_rows), panels, 1};
    if (view.box_heads != 0) {
        std::swap(extents[2], extents[3]);
        std::swap(strides[1], strides[2]);
        box[2] = static_cast<unsigned>(view.box_heads), box[3] = panels;
    }
    if (view.box_groups != 0) {  // the rows of a group behind those of the one before: an extent that overlaps the rows'
        rank = 5, box[1] = 8, box[3] = static_cast<unsigned>(view.box_groups), box[4] = 1;
        extents[3] = bytes(view.box_groups), extents[4] = bytes(view.heads);
        strides[2] = bytes(8 * view.token_stride), strides[3] = bytes(view.head_stride);
    }
    const unsigned steps[5] = {1, 1, 1, 1, 1};
    const Result result =
        driver.cuTensorMapEncodeTiled(map, view.bf16 ? kTensorBfloat16 : kTensorFloat16, rank, const_cast<void*>(view.data),
                                      extents, strides, box, steps, 0, kTensorSwizzle128, kTensorPromote256, 0);
    if (result != kSuccess)
        fail(result, "cuTensorMapEncodeTiled",
             std::to_string(view.rows) + " rows, " + std::to_string(view.heads) + " heads of " + std::to_string(view.dim) +
                 " elements, " + std::to_string(view.token_stride) + " and " + std::to_string(view.head_stride) + " bytes apart");
}

int Device::occupancy(const jit::LoadedKernel& kernel, std::uint32_t threads, std::uint32_t dynamic_shared) {
    const auto* loaded = dynamic_cast<const CudaKernel*>(&kernel);
    if (loaded == nullptr) raise(ErrorCode::kInvalidArgument, "occupancy was asked of a kernel that is not loaded on a GPU");
    return loaded->occupancy(threads, dynamic_shared);
}

void* Device::create_stream() {
    const auto scope = impl_->enter();
    Stream stream = nullptr;
    check(impl_->api().cuStreamCreate(&stream, kStreamNonBlocking), "cuStreamCreate");
    return stream;
}

void Device::destroy_stream(void* stream) noexcept {
    if (stream == nullptr) return;  // the default stream is not ours
    release_quietly(impl_->context->handle, [=](const Api& driver) { driver.cuStreamDestroy(stream_of(stream)); });
}

void* Device::create_event() {
    const auto scope = impl_->enter();
    Event event = nullptr;
    check(impl_->api().cuEventCreate(&event, kEventDefault), "cuEventCreate");  // with timing
    return event;
}

void Device::destroy_event(void* event) noexcept {
    if (event == nullptr) return;
    release_quietly(impl_->context->handle, [=](const Api& driver) { driver.cuEventDestroy(event_of(event)); });
}

void Device::record(void* event, void* stream) {
    const auto scope = impl_->enter();
    check(impl_->api().cuEventRecord(event_of(event), stream_of(stream)), "cuEventRecord");
}

double Device::elapsed_us(void* start, void* stop) {
    const auto scope = impl_->enter();
    float milliseconds = 0;
    check(impl_->api().cuEventSynchronize(event_of(stop)), "cuEventSynchronize");
    check(impl_->api().cuEventElapsedTime(&milliseconds, event_of(start), event_of(stop)), "cuEventElapsedTime");
    return static_cast<double>(milliseconds) * 1000;
}

void Device::begin_capture(void* stream) {
    const auto scope = impl_->enter();
    // Thread-local: what this thread may not do while it captures is refused, other threads stay free.
    check(impl_->api().cuStreamBeginCapture(stream_of(stream), kCaptureThreadLocal), "cuStreamBeginCapture");
}

void* Device::end_capture(void* stream) {
    const auto scope = impl_->enter();
    Graph graph = nullptr;
    check(impl_->api().cuStreamEndCapture(stream_of(stream), &graph), "cuStreamEndCapture");
    GraphExec exec = nullptr;
    const Result result = impl_->api().cuGraphInstantiateWithFlags(&exec, graph, 0);
    impl_->api().cuGraphDestroy(graph);  // the executable graph has copied it
    check(result, "cuGraphInstantiateWithFlags");
    return exec;
}

void Device::launch_graph(void* graph, void* stream) {
    const auto scope = impl_->enter();
    check(impl_->api().cuGraphLaunch(static_cast<GraphExec>(graph), stream_of(stream)), "cuGraphLaunch");
}

void Device::destroy_graph(void* graph) noexcept {
    if (graph == nullptr) return;
    release_quietly(impl_->context->handle, [=](const Api& driver) { driver.cuGraphExecDestroy(static_cast<GraphExec>(graph)); });
}

}  // namespace sapwood::cuda
