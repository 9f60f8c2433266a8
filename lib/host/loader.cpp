// SPDX-License-Identifier: Apache-2.0
#include <dlfcn.h>
#include <sys/mman.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstring>
#include <utility>

#include "base/error.h"
#include "host/executor.h"
#include "host/host.h"

namespace sapwood::host {
namespace {

/// A file that exists in memory only. dlopen wants a path, and older glibc has no other way to load from a descriptor.
class MemoryFile {
public:
    explicit MemoryFile(const jit::Artifact& artifact) : fd_(create()) {
        if (fd_ < 0) fail(artifact, "memfd_create");
        const std::byte* at = artifact.payload.data();
        std::size_t left = artifact.payload.size();
        while (left != 0) {
            const ssize_t written = write(fd_, at, left);
            if (written < 0 && errno == EINTR) continue;
            if (written <= 0) {
                const int cause = errno;
                close(fd_);
                errno = cause;
                fail(artifact, "write to an anonymous file");
            }
            at += written;
            left -= static_cast<std::size_t>(written);
        }
    }
    ~MemoryFile() { close(fd_); }
    MemoryFile(const MemoryFile&) = delete;
    MemoryFile& operator=(const MemoryFile&) = delete;

    /// glibc takes a path that it has loaded before for the same object, without a look at the file, and descriptor numbers come
    /// again: each load spells the path its own way, in the bits of a serial number.
    std::string path() const {
        static std::atomic<std::uint64_t> serial{1};
        std::string path = "/proc/self/fd/";
        for (std::uint64_t bits = serial++; bits != 0; bits >>= 1) path += bits & 1 ? "./" : "/";
        return path + std::to_string(fd_);
    }

private:
    static int create() {
        constexpr unsigned kCloseOnExec = 1, kExecutable = 0x10;  // MFD_CLOEXEC, and MFD_EXEC of Linux 6.3
        const int fd = memfd_create("sapwood-host-kernel", kCloseOnExec | kExecutable);
        return fd >= 0 || errno != EINVAL ? fd : memfd_create("sapwood-host-kernel", kCloseOnExec);
    }
    [[noreturn]] static void fail(const jit::Artifact& artifact, const char* what) {
        raise(ErrorCode::kInternal, "host kernel " + artifact.name + ": " + what + ": " + std::strerror(errno));
    }

    int fd_;
};

class HostKernel final : public jit::LoadedKernel {
public:
    HostKernel(const jit::Artifact& artifact, const ExecutorOptions& options) : name_(artifact.name), options_(options) {
        const MemoryFile file(artifact);
        handle_ = dlopen(file.path().c_str(), RTLD_NOW | RTLD_LOCAL);
        if (handle_ == nullptr) refuse(dlerror());
        entry_ = static_cast<const kernel::HostEntry*>(dlsym(handle_, artifact.entry.c_str()));
        if (entry_ == nullptr) refuse("no symbol " + artifact.entry + " in it");
        if (entry_->abi != kernel::kHostAbi || entry_->slot_bytes != kernel::kHostSlotBytes) {
            refuse("built for another executor (abi " + std::to_string(entry_->abi) + ", stacks of " +
                   std::to_string(entry_->slot_bytes) + " bytes; this one: abi " + std::to_string(kernel::kHostAbi) + ", " +
                   std::to_string(kernel::kHostSlotBytes) + "). Library and kernels must agree on AddressSanitizer");
        }
    }
    ~HostKernel() override {
        if (handle_ != nullptr) dlclose(handle_);
    }
    HostKernel(const HostKernel&) = delete;
    HostKernel& operator=(const HostKernel&) = delete;

    void launch(const jit::LaunchShape& shape, const void* params, std::size_t params_bytes, void*) override {
        execute(*entry_, name_, options_, shape, params, params_bytes);
    }

private:
    [[noreturn]] void refuse(const std::string& why) {
        const std::string text = "host kernel " + name_ + " cannot be loaded: " + why;
        if (handle_ != nullptr) dlclose(std::exchange(handle_, nullptr));
        raise(ErrorCode::kInternal, text);
    }

    std::string name_;
    ExecutorOptions options_;
    void* handle_ = nullptr;
    const kernel::HostEntry* entry_ = nullptr;
};

}  // namespace

std::unique_ptr<jit::LoadedKernel> load(const jit::Artifact& artifact, const ExecutorOptions& options) {
    if (artifact.kind != jit::PayloadKind::host_object || artifact.payload.empty()) {
        raise(ErrorCode::kInternal, "host::load: " + artifact.name + " for " + artifact.target + " is not a host object");
    }
    return std::make_unique<HostKernel>(artifact, options);
}

}  // namespace sapwood::host
