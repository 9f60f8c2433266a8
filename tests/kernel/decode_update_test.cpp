// SPDX-License-Identifier: Apache-2.0
// Plans that follow a forest as it changes, through the buffers and the graph that were made before.
#include <doctest/doctest.h>

#include "kernel/decode_cases.h"
#include "plan/decode_plan.h"
#include "support/gpu.h"

using namespace sapwood;
using namespace sapwood::test;

namespace {

/// Grows a scene step by step; `check(what)` must find the result right after each.
template <class Check>
void grow(Scene& scene, const Check& check) {
    Forest& forest = scene.forest;
    forest.append_token_to_each_request();
    check("a token for each request");
    for (int i = 0; i < 14; ++i) forest.append_token_to_each_request();
    check("tokens beyond the last chunk");
    forest.append_tokens(1, 9);
    check("tokens on an inner node");
    const std::int32_t added = forest.add_request(2);
    check("a request on an empty node");
    forest.remove_request(0);
    forest.remove_request(5);
    check("two requests fewer");
    forest.move_request(added, forest.add_node(scene.new_node(4, 61)));
    check("a request on a new node");
    CHECK(forest.add_request(Forest::kNoNode) <= 5);  // takes a free row
    check("a request that sees nothing, in a freed row");
}

void updates_take_over(const Target& target) {
    for (const std::int32_t page_size : {0, 32}) {
        DecodeCase which = small_case();
        which.page_size = page_size;
        Scene scene(which);
        DecodePlan plan = plan_of(target, scene);
        Bound bound(target, scene);
        bound.run(plan);
        CHECK(scene.fault() == "");
        const void* const buffers = plan.impl().device.get();
        grow(scene, [&](const char* what) {
            CAPTURE(what);
            plan.update(scene.forest);
            scene.fill();
            bound.refresh();
            bound.run(plan);
            CHECK(scene.fault() == "");
        });
        CHECK(plan.impl().device.get() == buffers);  // what a captured graph points to
    }
}

void too_large_an_update_changes_nothing(const Target& target) {
    Scene scene(small_case());
    DecodePlan plan = plan_of(target, scene, {.max_requests = 16, .max_tiles = 24, .max_items = 16});
    Bound bound(target, scene);
    const Forest before = scene.forest;
    scene.forest.append_tokens(5, 1);  // which would fit
    scene.forest.append_tokens(1, 100'000);
    try {
        plan.update(scene.forest);
        FAIL("took it over");
    } catch (const Error& error) {
        CHECK(error.code() == ErrorCode::kCapacityExceeded);
    }
    bound.run(plan);
    CHECK(scene.fault(before) == "");
}

}  // namespace

SAPWOOD_ON_BOTH("updates reach the next launch through the same buffers", updates_take_over)
SAPWOOD_ON_BOTH("an update that does not fit leaves the plan as it was", too_large_an_update_changes_nothing)

TEST_CASE("decode on gpu: a captured graph replays while the forest grows") {
    if (!support::gpu_available()) return;
    const Target target = gpu_target();
    Scene scene(small_case());
    DecodePlan plan = plan_of(target, scene);
    Bound bound(target, scene);
    void* stream = target.device->create_stream();
    target.device->begin_capture(stream);
    CHECK_THROWS_WITH_AS(target.engine->launch(plan, bound.tensors(), stream), doctest::Contains("not prepared"), Error);
    target.device->destroy_graph(target.device->end_capture(stream));

    target.engine->prepare(plan);
    target.engine->upload(plan, stream);
    target.device->synchronize(stream);
    target.device->begin_capture(stream);
    target.engine->launch(plan, bound.tensors(), stream);
    void* graph = target.device->end_capture(stream);
    grow(scene, [&](const char* what) {
        CAPTURE(what);
        plan.update(scene.forest);
        scene.fill();
        bound.refresh();
        target.engine->upload(plan, stream);
        bound.run([&](const DecodeTensors&) {
            target.device->launch_graph(graph, stream);
            target.device->synchronize(stream);
        });
        CHECK(scene.fault() == "");
    });
    target.device->destroy_graph(graph);
    target.device->destroy_stream(stream);
}
