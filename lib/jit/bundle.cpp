// SPDX-License-Identifier: Apache-2.0
// What a bundle means; the bytes of the file are in bundle_file.cpp.
#include "jit/bundle.h"

#include <algorithm>

#include "base/error.h"
#include "jit/disk_cache.h"

namespace sapwood::jit {

void BundleContents::add(const Digest& source, Artifact artifact, const Digest& entry) {
    artifact.compile_ms = 0;
    kernels.insert_or_assign(source, encode_entry(artifact, entry));
}

const BundleEntry* Bundle::find(const Digest& source) const noexcept {
    const auto at = std::lower_bound(entries_.begin(), entries_.end(), source,
                                     [](const BundleEntry& entry, const Digest& wanted) { return entry.source < wanted; });
    return at != entries_.end() && at->source == source ? &*at : nullptr;
}

std::shared_ptr<const Artifact> Bundle::read(const BundleEntry& entry, std::string* fault) const {
    const auto image = read_checked(entry.offset, entry.bytes, entry.image, fault);
    return image ? decode_entry(*image, nullptr, fault) : nullptr;
}

std::optional<std::vector<std::byte>> Bundle::read(const BundleAttachment& attachment, std::string* fault) const {
    return read_checked(attachment.offset, attachment.bytes, attachment.digest, fault);
}

std::vector<std::string> Bundle::verify() const {
    std::vector<std::string> faults;
    Digest found{};
    if (std::string fault = digest_of_file(found); !fault.empty())
        faults.push_back(std::move(fault));
    else if (found != digest_)
        faults.push_back("digest " + to_hex(found) + " is not the footer's " + to_hex(digest_));
    std::string fault;
    for (const BundleEntry& entry : entries_)
        if (read(entry, &fault) == nullptr) faults.push_back("kernel " + to_hex(entry.source) + ": " + fault);
    for (const BundleAttachment& attachment : attachments_)
        if (!read(attachment, &fault)) faults.push_back("attachment " + attachment.name + ": " + fault);
    return faults;
}

BundleContents Bundle::contents() const {
    BundleContents all;
    all.template_set = template_set_;
    std::string fault;
    const auto take = [&](const auto& part, const Digest& digest, const std::string& what) {
        auto bytes = read_checked(part.offset, part.bytes, digest, &fault);
        if (!bytes) raise(ErrorCode::kIo, "bundle " + path_.string() + ": " + what + ": " + fault + "; pack it again");
        return std::move(*bytes);
    };
    for (const BundleEntry& entry : entries_)
        all.kernels[entry.source] = take(entry, entry.image, "kernel " + to_hex(entry.source));
    for (const BundleAttachment& attachment : attachments_)
        all.attachments[attachment.name] = take(attachment, attachment.digest, attachment.name);
    return all;
}

MergedBundle merge_bundles(std::span<const BundleContents> bundles, const MergeAttachments& attachments) {
    MergedBundle merged;
    if (bundles.empty()) return merged;
    merged.contents.template_set = bundles.front().template_set;
    for (std::size_t i = 0; i < bundles.size(); ++i) {
        const BundleContents& bundle = bundles[i];
        const std::string number = std::to_string(i + 1);
        if (bundle.template_set != merged.contents.template_set)
            raise(ErrorCode::kInvalidArgument, "bundle " + number + " was made of templates " + bundle.template_set +
                                                   ", the first of " + merged.contents.template_set +
                                                   ": no one library can use both. Pack both with one build of Sapwood");
        for (const auto& [source, image] : bundle.kernels) {
            const auto [at, fresh] = merged.contents.kernels.emplace(source, image);
            if (fresh || at->second == image) continue;
            const auto kept = decode_entry(at->second, nullptr, nullptr), left = decode_entry(image, nullptr, nullptr);
            merged.conflicts.push_back("kernel " + (kept ? kept->name : to_hex(source)) + ": kept the one by " +
                                       (kept ? kept->compiler : "?") + ", left out bundle " + number + "'s by " +
                                       (left ? left->compiler : "?"));
        }
        for (const auto& [name, bytes] : bundle.attachments) {
            const auto [at, fresh] = merged.contents.attachments.emplace(name, bytes);
            if (fresh || at->second == bytes) continue;
            if (auto joined = attachments ? attachments(name, at->second, bytes) : std::nullopt) {
                at->second = std::move(*joined);
            } else {
                merged.conflicts.push_back("attachment " + name + ": kept the first, left out bundle " + number + "'s");
            }
        }
    }
    return merged;
}

}  // namespace sapwood::jit
