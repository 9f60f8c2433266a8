// SPDX-License-Identifier: Apache-2.0
// A server for tests: an engine on the host target whose compiler waits at a gate, and a stream that says it captures.
#pragma once

#include <doctest/doctest.h>

#include <atomic>
#include <condition_variable>
#include <mutex>

#include "engine/engine_impl.h"
#include "engine/plan_state.h"
#include "integration/small_problem.h"
#include "support/cache_fixture.h"

namespace sapwood::test {

inline constexpr DecodeConfig kSmall = {
    .mainloop = Mainloop::mma, .warps = 4, .producers = 2, .block_kv = 32, .stages = 3, .blocks = 1};

/// The host compiler behind a gate: compiles wait until it is opened.
class GatedCompiler : public jit::Compiler {
public:
    explicit GatedCompiler(std::unique_ptr<jit::Compiler> real) : real_(std::move(real)) {}
    std::string identity() override { return real_->identity(); }
    std::string family() override { return real_->family(); }
    jit::Artifact compile(const jit::CompileRequest& request) override {
        ++begun;
        std::unique_lock lock(mutex_);
        opened_.wait(lock, [&] { return open_; });
        lock.unlock();
        if (refuse) throw Error(ErrorCode::kCompileFailed, "refused " + request.name);
        return real_->compile(request);
    }
    void open(bool open = true) {
        std::lock_guard lock(mutex_);
        open_ = open;
        opened_.notify_all();
    }
    std::atomic<int> begun{0};
    std::atomic<bool> refuse{false};

private:
    std::unique_ptr<jit::Compiler> real_;
    std::mutex mutex_;
    std::condition_variable opened_;
    bool open_ = true;
};

struct Server {
    explicit Server(EngineOptions options = {}) : engine(with(std::move(options), dir.path() / "cache")) {
        auto& setup = engine.impl().service->setup;
        auto made = std::make_unique<GatedCompiler>(std::move(setup.compiler));
        gate = made.get();
        setup.compiler = std::move(made);
    }
    ~Server() { gate->open(); }  // or the engine would wait for what waits

    static EngineOptions with(EngineOptions options, const std::filesystem::path& cache) {
        options.target = "host";
        options.cache_dir = cache;
        return options;
    }

    TempDir dir;
    Engine engine;
    GatedCompiler* gate;
};

/// A host memory that says of one stream that it captures.
class CapturingMemory : public Memory {
public:
    explicit CapturingMemory(std::shared_ptr<Memory> real) : real_(std::move(real)) {}
    void* allocate(std::size_t bytes) override { return ++touched, real_->allocate(bytes); }
    void free(void* pointer) noexcept override { real_->free(pointer); }
    void copy_in(void* to, const void* from, std::size_t bytes, void* stream) override {
        ++touched;
        real_->copy_in(to, from, bytes, stream);
    }
    bool capturing(void* stream) override { return stream == kCapturing; }
    abi::TensorMap tensor_map(const cuda::TensorView& view) override { return real_->tensor_map(view); }
    static inline int tag = 0;
    static constexpr void* kCapturing = &tag;
    int touched = 0;

private:
    std::shared_ptr<Memory> real_;
};

}  // namespace sapwood::test
