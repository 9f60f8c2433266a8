// SPDX-License-Identifier: Apache-2.0
// No mutex here: a child forked while another thread of the parent was logging must still be able to log.
#define SPDLOG_HEADER_ONLY
#define FMT_HEADER_ONLY
#include "base/log.h"

#include <spdlog/logger.h>
#include <spdlog/sinks/sink.h>

#include <atomic>
#include <cstdio>
#include <memory>
#include <utility>

#include "base/env.h"

namespace sapwood::log {
namespace {

/// One fwrite a line, no time stamp: spdlog's own stderr sinks share a mutex, and local time takes a lock inside libc.
class StderrSink final : public spdlog::sinks::sink {
public:
    void log(const spdlog::details::log_msg& message) override {
        spdlog::memory_buf_t line;
        fmt::format_to(std::back_inserter(line), "[sapwood] [{}] {}\n",
                       fmt::string_view(spdlog::level::to_string_view(message.level).data()),
                       fmt::string_view(message.payload.data(), message.payload.size()));
        std::fwrite(line.data(), 1, line.size(), stderr);
    }
    void flush() override {}
    void set_pattern(const std::string&) override {}
    void set_formatter(std::unique_ptr<spdlog::formatter>) override {}
};

spdlog::level::level_enum level_of(const std::string& text) {
    if (text == "debug") return spdlog::level::debug;
    if (text == "info") return spdlog::level::info;
    if (text == "error") return spdlog::level::err;
    if (text == "off") return spdlog::level::off;
    return spdlog::level::warn;
}

spdlog::level::level_enum level_of(Level level) {
    switch (level) {
        case Level::debug:
            return spdlog::level::debug;
        case Level::info:
            return spdlog::level::info;
        case Level::warning:
            return spdlog::level::warn;
        case Level::error:
            break;
    }
    return spdlog::level::err;
}

spdlog::logger& default_logger() {
    // Never destroyed: static destructors of the application may still log.
    static spdlog::logger* const logger = [] {
        auto* made = new spdlog::logger("sapwood", std::make_shared<StderrSink>());
        made->set_level(level_of(env::get("SAPWOOD_LOG").value_or("warning")));
        return made;
    }();
    return *logger;
}

/// Replaced sinks are kept, since a thread may be inside one; there are few.
struct HeldSink {
    Sink sink;
    HeldSink* previous;
};
std::atomic<HeldSink*> g_sink{nullptr};

/// Causes already warned of: a list that only grows.
struct Cause {
    std::string text;
    Cause* next;
};
std::atomic<Cause*> g_causes{nullptr};

void emit(Level level, std::string_view text) {
    try {
        if (const HeldSink* held = g_sink.load(std::memory_order_acquire); held != nullptr && held->sink) {
            held->sink(level, text);
        } else {
            default_logger().log(level_of(level), spdlog::string_view_t(text.data(), text.size()));
        }
    } catch (...) {  // a message that cannot be delivered must not become a failure of what it reports on
    }
}

}  // namespace

void set_sink(Sink sink) {
    auto* held = new HeldSink{std::move(sink), g_sink.load(std::memory_order_relaxed)};
    while (!g_sink.compare_exchange_weak(held->previous, held, std::memory_order_acq_rel)) {}
}

bool enabled(Level level) noexcept {
    try {
        if (const HeldSink* held = g_sink.load(std::memory_order_acquire); held != nullptr && held->sink) return true;
        return default_logger().should_log(level_of(level));
    } catch (...) {
        return false;
    }
}

void debug(std::string_view text) { emit(Level::debug, text); }
void info(std::string_view text) { emit(Level::info, text); }
void warning(std::string_view text) { emit(Level::warning, text); }
void error(std::string_view text) { emit(Level::error, text); }

void warning_once(std::string_view cause, std::string_view text) {
    auto made = std::make_unique<Cause>(Cause{std::string(cause), g_causes.load(std::memory_order_acquire)});
    const Cause* checked = nullptr;  // the part of the list known not to hold `cause`
    do {
        for (const Cause* seen = made->next; seen != checked; seen = seen->next) {
            if (seen->text == cause) return;
        }
        checked = made->next;
    } while (!g_causes.compare_exchange_weak(made->next, made.get(), std::memory_order_acq_rel));
    made.release();  // now owned by the list
    emit(Level::warning, text);
}

}  // namespace sapwood::log
