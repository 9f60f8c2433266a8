// SPDX-License-Identifier: Apache-2.0
// Umbrella header.
#pragma once

#include "sapwood/decode.h"
#include "sapwood/draft.h"
#include "sapwood/engine.h"
#include "sapwood/error.h"
#include "sapwood/forest.h"
#include "sapwood/merge.h"
#include "sapwood/packed.h"
#include "sapwood/static_tree.h"
#include "sapwood/types.h"
