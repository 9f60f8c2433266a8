// SPDX-License-Identifier: Apache-2.0
#include "cuda/nvrtc_locate.h"

#include <dlfcn.h>
#include <elf.h>
#include <fcntl.h>
#include <link.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <memory>

#include "base/env.h"

namespace sapwood::cuda {
namespace {

namespace fs = std::filesystem;

// Newest first; older ones do not know C++20.
constexpr std::array<const char*, 2> kSonames = {"libnvrtc.so.13", "libnvrtc.so.12"};
constexpr const char* kBuiltinsPrefix = "libnvrtc-builtins.so.";
// Where the pip packages of CUDA 13 and 12 keep libnvrtc below site-packages/nvidia.
constexpr std::array<const char*, 2> kPackageFolders = {"nvidia/cu13/lib", "nvidia/cuda_nvrtc/lib"};

#if defined(__x86_64__)
constexpr std::uint16_t kMachine = EM_X86_64;
constexpr const char* kSystemFolder = "/usr/lib/x86_64-linux-gnu";
constexpr const char* kToolkitTarget = "targets/x86_64-linux/lib";
#elif defined(__aarch64__)
constexpr std::uint16_t kMachine = EM_AARCH64;
constexpr const char* kSystemFolder = "/usr/lib/aarch64-linux-gnu";
constexpr const char* kToolkitTarget = "targets/sbsa-linux/lib";
#else
#error "Sapwood runs on 64-bit x86 and Arm Linux"
#endif

class File {
public:
    explicit File(const std::string& path) : descriptor_(open(path.c_str(), O_RDONLY | O_CLOEXEC)) {}
    ~File() {
        if (descriptor_ >= 0) close(descriptor_);
    }
    File(const File&) = delete;
    File& operator=(const File&) = delete;
    bool is_open() const { return descriptor_ >= 0; }
    bool read(void* to, std::size_t bytes, std::uint64_t offset) const {
        return pread(descriptor_, to, bytes, static_cast<off_t>(offset)) == static_cast<ssize_t>(bytes);
    }

private:
    int descriptor_;
};

bool read_header(const File& file, Elf64_Ehdr& header) {
    return file.is_open() && file.read(&header, sizeof header, 0) && std::memcmp(header.e_ident, ELFMAG, SELFMAG) == 0 &&
           header.e_ident[EI_CLASS] == ELFCLASS64 && header.e_machine == kMachine;
}

/// Digits and dots after `prefix` as numbers: "libnvrtc.so.12.4.127" gives {12, 4, 127}.
std::vector<int> version_after(const std::string& name, const std::string& prefix) {
    std::vector<int> version;
    if (!name.starts_with(prefix)) return version;
    for (std::size_t at = prefix.size(); at < name.size() && name[at] >= '0' && name[at] <= '9';) {
        int number = 0;
        for (; at < name.size() && name[at] >= '0' && name[at] <= '9'; ++at) number = number * 10 + (name[at] - '0');
        version.push_back(number);
        if (at < name.size() && name[at] == '.') ++at;
    }
    return version;
}

/// libnvrtc-builtins.so.<major>.<minor> of `library`'s version, beside it or beside the file it links to.
std::string find_builtins(const fs::path& library) {
    std::error_code ignored;
    const fs::path real = fs::canonical(library, ignored);
    const std::vector<int> wanted = version_after(real.filename().string(), "libnvrtc.so.");
    const auto fits = [&](const std::vector<int>& version) {
        for (std::size_t i = 0; i < std::min<std::size_t>({wanted.size(), version.size(), 2}); ++i) {
            if (wanted[i] != version[i]) return false;
        }
        return !version.empty();
    };
    for (const fs::path& folder : {library.parent_path(), real.parent_path()}) {
        fs::path best;
        std::vector<int> best_version;
        for (fs::directory_iterator each(folder, ignored), end; each != end; each.increment(ignored)) {
            const std::vector<int> version = version_after(each->path().filename().string(), kBuiltinsPrefix);
            if (!fits(version) || version <= best_version) continue;
            best = each->path();
            best_version = version;
        }
        if (!best.empty()) return best.string();
    }
    return {};
}

/// Takes `path` as the answer, or notes in `tried` why not. Files that are simply absent are noted only when `report_absent`.
bool accept(NvrtcFiles& files, const std::string& path, bool report_absent) {
    std::error_code ignored;
    if (!fs::exists(path, ignored)) {
        if (report_absent) files.tried.push_back(path + ": no such file");
        return false;
    }
    Elf64_Ehdr header{};
    if (!read_header(File(path), header)) {
        files.tried.push_back(path + ": not a readable 64-bit library for this processor");
        return false;
    }
    files.builtins = find_builtins(path);
    if (files.builtins.empty()) {
        files.tried.push_back(path + ": no matching " + kBuiltinsPrefix + "* beside it");
        return false;
    }
    files.library = path;
    return true;
}

bool accept_folder(NvrtcFiles& files, const fs::path& folder) {
    const std::size_t before = files.tried.size();
    for (const char* soname : kSonames) {
        if (accept(files, (folder / soname).string(), false)) return true;
    }
    if (files.tried.size() == before) files.tried.push_back(folder.string() + ": no libnvrtc");
    return false;
}

bool accept_packages(NvrtcFiles& files, const fs::path& root) {
    std::error_code ignored;
    for (const char* folder : kPackageFolders) {
        if (fs::is_directory(root / folder, ignored) && accept_folder(files, root / folder)) return true;
    }
    return false;
}

std::string path_of(void* handle) {
    link_map* map = nullptr;
    return dlinfo(handle, RTLD_DI_LINKMAP, &map) == 0 && map != nullptr && map->l_name != nullptr ? map->l_name : "";
}

bool accept_by_soname(NvrtcFiles& files, int flags) {
    for (const char* soname : kSonames) {
        void* handle = dlopen(soname, RTLD_LAZY | RTLD_LOCAL | flags);
        if (handle == nullptr) continue;
        const std::string path = path_of(handle);
        const bool taken = !path.empty() && accept(files, path, true);
        dlclose(handle);
        if (taken) return true;
    }
    return false;
}

/// The directories that dlopen would search for this program: LD_LIBRARY_PATH, run paths and the system's, but not ld.so.cache.
std::vector<fs::path> loader_folders() {
    std::vector<fs::path> folders;
    void* self = dlopen(nullptr, RTLD_LAZY);
    if (self == nullptr) return folders;
    Dl_serinfo sizes{};
    if (dlinfo(self, RTLD_DI_SERINFOSIZE, &sizes) == 0) {
        const std::unique_ptr<std::byte[]> space(new std::byte[sizes.dls_size]());
        auto* info = reinterpret_cast<Dl_serinfo*>(space.get());
        info->dls_size = sizes.dls_size;
        info->dls_cnt = sizes.dls_cnt;
        if (dlinfo(self, RTLD_DI_SERINFO, info) == 0) {
            for (unsigned i = 0; i < info->dls_cnt; ++i) folders.emplace_back(info->dls_serpath[i].dls_name);
        }
    }
    dlclose(self);
    return folders;
}

/// Roots that hold a folder "nvidia" of packages, judged by the libraries that are loaded (torch, cuBLAS, this very library).
std::vector<fs::path> package_roots() {
    std::vector<fs::path> roots;
    const auto collect = [](dl_phdr_info* info, std::size_t, void* out) {
        const std::string path = info->dlpi_name != nullptr ? info->dlpi_name : "";
        for (const char* mark : {"/nvidia/", "/torch/lib/"}) {
            if (const std::size_t at = path.find(mark); at != std::string::npos)
                static_cast<std::vector<fs::path>*>(out)->push_back(path.substr(0, at));
        }
        return 0;
    };
    dl_iterate_phdr(collect, &roots);
    std::sort(roots.begin(), roots.end());
    roots.erase(std::unique(roots.begin(), roots.end()), roots.end());
    return roots;
}

/// Folders above this binary (executable or shared library), nearest first. Stops where anyone may write: what lies in /tmp is not
/// ours.
std::vector<fs::path> folders_above() {
    std::vector<fs::path> folders;
    std::error_code ignored;
    Dl_info info{};
    static const char marker = 0;
    std::vector<fs::path> starts{fs::read_symlink("/proc/self/exe", ignored)};
    if (dladdr(&marker, &info) != 0 && info.dli_fname != nullptr) starts.push_back(fs::canonical(info.dli_fname, ignored));
    for (const fs::path& start : starts) {
        fs::path folder = start.parent_path();
        for (int level = 0; level < 5 && folder.has_relative_path(); ++level, folder = folder.parent_path()) {
            struct stat status {};
            if (stat(folder.c_str(), &status) != 0 || (status.st_mode & S_IWOTH) != 0) break;
            if (std::find(folders.begin(), folders.end(), folder) == folders.end()) folders.push_back(folder);
        }
    }
    return folders;
}

/// A development tree keeps toolkit packages somewhere below `.deps`.
bool accept_below(NvrtcFiles& files, const fs::path& folder, int depth) {
    std::error_code ignored;
    if (!fs::is_directory(folder, ignored)) return false;
    if (accept_packages(files, folder)) return true;
    if (depth == 0) return false;
    std::vector<fs::path> inner;
    for (fs::directory_iterator each(folder, ignored), end; each != end; each.increment(ignored)) {
        if (each->is_directory(ignored) && !each->is_symlink(ignored)) inner.push_back(each->path());
    }
    std::sort(inner.begin(), inner.end());  // the file system's order is no order
    return std::any_of(inner.begin(), inner.end(), [&](const fs::path& each) { return accept_below(files, each, depth - 1); });
}

bool accept_toolkit(NvrtcFiles& files, const fs::path& root) {
    return accept_folder(files, root / "lib64") || accept_folder(files, root / "lib") ||
           accept_folder(files, root / kToolkitTarget);
}

bool search(NvrtcFiles& files) {
    if (accept_by_soname(files, RTLD_NOLOAD)) return true;
    for (const fs::path& folder : loader_folders()) {
        if (accept_folder(files, folder)) return true;
    }
    for (const fs::path& root : package_roots()) {
        if (accept_packages(files, root)) return true;
    }
    for (const fs::path& folder : folders_above()) {
        if (accept_packages(files, folder) || accept_below(files, folder / ".deps", 5)) return true;
    }
    for (const char* variable : {"CUDA_HOME", "CUDA_PATH"}) {
        if (const auto root = env::get(variable); root && accept_toolkit(files, *root)) return true;
    }
#ifdef SAPWOOD_NVRTC_HINT
    if (accept_folder(files, SAPWOOD_NVRTC_HINT)) return true;
#endif
    if (accept_toolkit(files, "/usr/local/cuda") || accept_folder(files, kSystemFolder)) return true;
    // Last, because it maps the whole library: only the loader itself knows what its cache holds.
    if (accept_by_soname(files, 0)) return true;
    files.tried.push_back("the loader's cache (ldconfig): no libnvrtc.so.13 or .12");
    return false;
}

}  // namespace

NvrtcFiles locate_nvrtc() {
    NvrtcFiles files;
    if (const auto path = env::get("SAPWOOD_NVRTC")) {
        std::error_code ignored;
        files.explicitly = true;
        if (fs::is_directory(*path, ignored)) {
            accept_folder(files, *path);
        } else {
            accept(files, *path, true);
        }
    } else {
        search(files);
    }
    return files;
}

std::string elf_build_id(const std::string& path) {
    const File file(path);
    Elf64_Ehdr header{};
    if (!read_header(file, header) || header.e_phentsize != sizeof(Elf64_Phdr)) return {};
    for (unsigned i = 0; i < header.e_phnum; ++i) {
        Elf64_Phdr segment{};
        if (!file.read(&segment, sizeof segment, header.e_phoff + i * sizeof segment)) return {};
        if (segment.p_type != PT_NOTE || segment.p_filesz > 65536) continue;
        std::vector<unsigned char> notes(segment.p_filesz);
        if (!file.read(notes.data(), notes.size(), segment.p_offset)) return {};
        const std::uint64_t align = segment.p_align == 8 ? 8 : 4;
        const auto padded = [&](std::uint64_t offset) { return (offset + align - 1) / align * align; };
        for (std::uint64_t at = 0; at + sizeof(Elf64_Nhdr) <= notes.size();) {
            Elf64_Nhdr note{};
            std::memcpy(&note, notes.data() + at, sizeof note);
            const std::uint64_t name = at + sizeof note;
            const std::uint64_t value = padded(name + note.n_namesz);
            if (value + note.n_descsz > notes.size()) break;
            if (note.n_type == NT_GNU_BUILD_ID && note.n_namesz == 4 && std::memcmp(notes.data() + name, "GNU", 4) == 0) {
                std::string hex;
                for (std::uint64_t byte = value; byte < value + note.n_descsz; ++byte) {
                    hex += "0123456789abcdef"[notes[byte] >> 4];
                    hex += "0123456789abcdef"[notes[byte] & 15];
                }
                return hex;
            }
            at = padded(value + note.n_descsz);
        }
    }
    return {};
}

}  // namespace sapwood::cuda
