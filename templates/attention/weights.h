// SPDX-License-Identifier: Apache-2.0
// Weights (and, backward, their gradients) as A fragments of the next products: of 16 rows, a fragment for every 16 columns, half
// of one for each accumulator that they come in.
#pragma once

#include "attention/softmax_state.h"

namespace sapwood::kernel {

/// The 8 columns of accumulator `i`.
template <class Element, u32 kSteps>
SAPWOOD_DEVICE void pack_block(u32 (&p)[kSteps][4], u32 i, const f32 (&weight)[4]) {
    p[i / 2][i % 2 * 2] = pack2<Element>(weight[0], weight[1]);
    p[i / 2][i % 2 * 2 + 1] = pack2<Element>(weight[2], weight[3]);
}
template <class Element, u32 kSteps>
SAPWOOD_DEVICE void pack_weights(u32 (&p)[kSteps][4], const f32 (&s)[kSteps * 2][4]) {
    SAPWOOD_UNROLL for (u32 i = 0; i < kSteps * 2; ++i) pack_block<Element>(p, i, s[i]);
}
/// Two neighbouring accumulators.
template <class Element>
SAPWOOD_DEVICE void pack_weights(u32 (&p)[4], const f32 (&low)[4], const f32 (&high)[4]) {
    p[0] = pack2<Element>(low[0], low[1]);
    p[1] = pack2<Element>(low[2], low[3]);
    p[2] = pack2<Element>(high[0], high[1]);
    p[3] = pack2<Element>(high[2], high[3]);
}

/// Weights by the maxima as they are; false if scores have outgrown them, which SoftmaxState::raise() then sees to.
template <class Element, u32 kDim, u32 kSteps>
SAPWOOD_DEVICE bool try_weights(SoftmaxState<kDim>& state, u32 (&p)[kSteps][4], const f32 (&s)[kSteps * 2][4], f32 factor) {
    return state.try_exponentials(s, factor, [&p](u32 i, const f32(&weight)[4]) { pack_block<Element>(p, i, weight); });
}

}  // namespace sapwood::kernel
