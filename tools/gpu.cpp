// SPDX-License-Identifier: Apache-2.0
#include "gpu.h"

#include <utility>

#include "common.h"

namespace sapwood::tool {

DevicePtr device_of(const std::string& target, bool engine_has_device) {
    if (!engine_has_device || target == "host" || cuda::device_count() == 0) return nullptr;
    return cuda::Device::open(target.starts_with("cuda:") ? std::atoi(target.c_str() + 5) : 0);
}

DeviceBuffer::DeviceBuffer(DevicePtr device, std::size_t bytes) : device_(std::move(device)), bytes_(bytes) {
    if (bytes > 0) address_ = device_->allocate(bytes);
}

DeviceBuffer::DeviceBuffer(DevicePtr device, const void* from, std::size_t bytes) : DeviceBuffer(std::move(device), bytes) {
    upload(from, bytes);
}

DeviceBuffer& DeviceBuffer::operator=(DeviceBuffer&& other) noexcept {
    std::swap(device_, other.device_);
    std::swap(address_, other.address_);
    std::swap(bytes_, other.bytes_);
    return *this;
}

DeviceBuffer::~DeviceBuffer() {
    if (address_) device_->free(address_);
}

void DeviceBuffer::upload(const void* from, std::size_t bytes, std::size_t at) {
    if (bytes == 0) return;
    device_->copy_to_device(address_ + at, from, bytes, nullptr);
    device_->synchronize(nullptr);
}

void DeviceBuffer::download(void* to, std::size_t bytes) const {
    if (bytes > 0) device_->copy_to_host(to, address_, bytes, nullptr);
}

DeviceCase::DeviceCase(DevicePtr device, const support::DecodeCase& which, const support::Inputs& inputs)
    : device_(std::move(device)) {
    kv_ = {DeviceBuffer(device_, inputs.k.data(), inputs.k.bytes()), DeviceBuffer(device_, inputs.v.data(), inputs.v.bytes())};
    tensors_ = inputs.tensors;  // strides; the pointers follow
    rest(which, inputs.q.data(), inputs.q.bytes());
}

DeviceCase::DeviceCase(DevicePtr device, const support::DecodeCase& which, const support::InputOptions& options)
    : device_(std::move(device)) {
    support::set_strides(tensors_, which, options);
    const support::Variant& shape = which.variant;
    const std::int64_t dim_v = which.head_dim_v ? which.head_dim_v : shape.head_dim;
    support::HalfBuffer block(std::int64_t{1}
                              << 24);  // 32 MB, longer than what a block keeps in flight and no power of two of a row
    support::fill_kv_values(shape, which.seed, support::Stream::k, block.span());
    const std::size_t element = kv_dtype_bytes(shape.kv_dtype, shape.dtype);
    const auto filled = [&](std::int64_t elements) {
        DeviceBuffer buffer(device_, static_cast<std::size_t>(elements) * element);
        for (std::size_t at = 0; at < buffer.bytes(); at += block.bytes())
            buffer.upload(block.data(), std::min(block.bytes(), buffer.bytes() - at), at);
        return buffer;
    };
    kv_ = {filled(which.rows * shape.kv_heads * shape.head_dim), filled(which.rows * shape.kv_heads * dim_v)};
    support::HalfBuffer q(which.counts.requests * shape.q_heads * shape.head_dim);
    support::fill_values(shape.dtype, which.seed, support::Stream::q, 0, q.span());
    rest(which, q.data(), q.bytes());
}

void DeviceCase::rest(const support::DecodeCase& which, const void* q, std::size_t q_bytes) {
    const support::Variant& shape = which.variant;
    const std::size_t rows = static_cast<std::size_t>(which.forest.request_capacity()) * static_cast<std::size_t>(shape.q_heads);
    const std::size_t dim_v = static_cast<std::size_t>(which.head_dim_v ? which.head_dim_v : shape.head_dim);
    q_ = DeviceBuffer(device_, q, q_bytes);
    out_ = DeviceBuffer(device_, rows * dim_v * 2);
    lse_ = DeviceBuffer(device_, rows * 4);
    pages_ = DeviceBuffer(device_, which.page_table.data(), which.page_table.size() * 4);
    tensors_.q = q_.as();
    tensors_.k = kv_.k.as();
    tensors_.v = kv_.v.as();
    tensors_.out = out_.as();
    tensors_.lse = lse_.as<float>();
    tensors_.page_table = shape.page_size ? pages_.as<std::int32_t>() : nullptr;
    poison();
}

DecodeTensors DeviceCase::tensors_with(const DeviceKv& kv) const {
    DecodeTensors tensors = tensors_;
    tensors.k = kv.k.as();
    tensors.v = kv.v.as();
    return tensors;
}

void DeviceCase::poison() {
    device_->fill(out_.address(), 0xff, out_.bytes(), nullptr);  // all ones is a NaN in fp16, bf16 and fp32
    device_->fill(lse_.address(), 0xff, lse_.bytes(), nullptr);
    device_->synchronize(nullptr);
}

void DeviceCase::download(support::Inputs& inputs) const {
    out_.download(inputs.out.data(), inputs.out.bytes());
    lse_.download(inputs.lse.data(), inputs.lse.size() * sizeof(float));
}

GpuStream::GpuStream(DevicePtr device) : device_(std::move(device)), stream_(device_->create_stream()) {}

void GpuStream::destroy_graphs() {
    for (void* graph : graphs_) device_->destroy_graph(graph);
    graphs_.clear();
}

GpuStream::~GpuStream() {
    destroy_graphs();
    for (const auto& [start, stop] : events_) {
        device_->destroy_event(start);
        device_->destroy_event(stop);
    }
    device_->destroy_stream(stream_);
}

void* GpuStream::capture(const Enqueue& body) {
    device_->begin_capture(stream_);
    body(stream_);
    graphs_.push_back(device_->end_capture(stream_));
    return graphs_.back();
}

std::vector<double> GpuStream::time(int samples, const std::function<void(int)>& before, const std::function<void(int)>& measured) {
    while (static_cast<int>(events_.size()) < samples) {
        void* start = device_->create_event();
        events_.emplace_back(start, device_->create_event());
    }
    for (int i = 0; i < samples; ++i) {
        if (before) before(i);
        device_->record(events_[static_cast<std::size_t>(i)].first, stream_);
        measured(i);
        device_->record(events_[static_cast<std::size_t>(i)].second, stream_);
    }
    std::vector<double> times;
    for (int i = 0; i < samples; ++i) {
        const auto& [start, stop] = events_[static_cast<std::size_t>(i)];
        times.push_back(device_->elapsed_us(start, stop));
    }
    return times;
}

}  // namespace sapwood::tool
