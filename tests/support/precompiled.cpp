// SPDX-License-Identifier: Apache-2.0
// Nothing but its target's precompiled header, which all test programs use.
