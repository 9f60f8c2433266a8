// SPDX-License-Identifier: Apache-2.0
// A plan that another kernel serves until its own is compiled: right before, at and after the switch, while the forest grows.
#include <doctest/doctest.h>

#include "kernel/decode_cases.h"
#include "plan/decode_plan.h"
#include "support/cache_fixture.h"
#include "support/gpu.h"

using namespace sapwood;
using namespace sapwood::test;

namespace {

constexpr DecodeConfig kSmall = {.mainloop = Mainloop::mma, .warps = 4, .producers = 2, .block_kv = 32, .stages = 3, .blocks = 1};

/// An engine with an empty cache that compiles in the background, and one small kernel ready.
struct Server {
    explicit Server(const Target& like)
        : engine({.target = like.device ? "cuda" : "host", .cache_dir = dir.path(), .compile = CompilePolicy::background}),
          target{&engine, like.device} {
        DecodeCase which = small_case();
        which.config = kSmall;
        Scene scene(which);
        DecodePlan plan = plan_of(target, scene);
        engine.prepare(plan);
        small = plan.kernel_key();
        engine.finish_compiles();
    }
    TempDir dir;
    Engine engine;
    Target target;
    std::string small;
};

void stand_in_follows_the_forest(const Target& like) {
    Server server(like);
    Scene scene(small_case());
    DecodePlan plan = plan_of(server.target, scene);
    CHECK(plan.kernel_key() == server.small);
    Bound bound(server.target, scene);
    const auto right = [&](const char* when) {
        CAPTURE(when);
        scene.fill();
        bound.refresh();
        bound.run(plan);
        CHECK(scene.fault() == "");
    };
    right("at first");
    const void* const buffers = plan.impl().device.get();
    for (int step = 0; step < 3; ++step) {
        scene.forest.append_token_to_each_request();
        plan.update(scene.forest);
        right("while the compiler runs");
    }
    server.engine.finish_compiles();
    scene.forest.append_tokens(1, 9);
    plan.update(scene.forest);
    CHECK(plan.kernel_key() != server.small);
    right("after the switch");
    scene.forest.append_token_to_each_request();
    plan.update(scene.forest);  // patched in place, in the new tiles
    right("one token on");
    scene.forest.remove_request(0);
    plan.update(scene.forest);
    right("one request fewer");
    CHECK(plan.impl().device.get() == buffers);
    CHECK(server.engine.stats().switches == 1);
}

}  // namespace

SAPWOOD_ON_BOTH("a stand-in serves until the plan's own kernel takes over", stand_in_follows_the_forest)

TEST_CASE("decode on gpu: a graph that captured a stand-in stays right after the plan's own kernel has come") {
    if (!support::gpu_available()) return;
    Server server(gpu_target());
    Scene scene(small_case());
    DecodePlan plan = plan_of(server.target, scene);
    CHECK(plan.kernel_key() == server.small);
    Bound bound(server.target, scene);
    cuda::Device& device = *server.target.device;
    void* stream = device.create_stream();
    server.engine.upload(plan, stream);
    device.synchronize(stream);
    device.begin_capture(stream);
    server.engine.launch(plan, bound.tensors(), stream);
    void* graph = device.end_capture(stream);
    server.engine.finish_compiles();
    for (int step = 0; step < 3; ++step) {
        CAPTURE(step);
        scene.forest.append_token_to_each_request();
        plan.update(scene.forest);
        CHECK(plan.kernel_key() == server.small);
        scene.fill();
        bound.refresh();
        server.engine.upload(plan, stream);
        bound.run([&](const DecodeTensors&) {
            device.launch_graph(graph, stream);
            device.synchronize(stream);
        });
        CHECK(scene.fault() == "");
    }
    DecodePlan fresh = plan_of(server.target, scene);
    CHECK(fresh.kernel_key() != server.small);
    bound.run(fresh);
    CHECK(scene.fault() == "");
    device.destroy_graph(graph);
    device.destroy_stream(stream);
}

TEST_CASE("decode on gpu: a kernel loads in the background while another thread captures") {
    if (!support::gpu_available()) return;
    Server server(gpu_target());
    Scene scene(small_case());
    Bound bound(server.target, scene);
    DecodePlan ready = server.engine.plan_decode(scene.which.problem(), scene.forest, kSmall);
    cuda::Device& device = *server.target.device;
    void* stream = device.create_stream();
    server.engine.upload(ready, stream);
    device.synchronize(stream);
    device.begin_capture(stream);
    DecodePlan wanted = plan_of(server.target, scene);  // asks for a compile, and plans for the small one
    server.engine.finish_compiles();                    // compiled and loaded within the capture
    server.engine.launch(ready, bound.tensors(), stream);
    void* graph = device.end_capture(stream);
    bound.run([&](const DecodeTensors&) {
        device.launch_graph(graph, stream);
        device.synchronize(stream);
    });
    CHECK(scene.fault() == "");
    CHECK(server.engine.stats().background_failures == 0);
    device.destroy_graph(graph);
    device.destroy_stream(stream);
}

TEST_CASE("decode on gpu: a child forked after the first use is told so, and the parent goes on") {
    if (!support::gpu_available()) return;
    const Target target = gpu_target();
    Scene scene(small_case());
    DecodePlan plan = plan_of(target, scene);
    Bound bound(target, scene);
    bound.run(plan);
    CHECK(in_child([&]() -> std::string {
              for (const bool made_here : {false, true}) {
                  try {
                      if (made_here) {
                          Engine own({.target = "cuda"});
                      } else {
                          target.engine->launch(plan, bound.tensors());
                      }
                      return "nothing was said";
                  } catch (const Error& error) {
                      if (std::string(error.what()).find("fork") == std::string::npos) return error.what();
                  }
              }
              return {};
          }) == "");
    bound.run(plan);
    CHECK(scene.fault() == "");
}
