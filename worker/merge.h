#pragma once

#include <span>

#include "experts/exchange.h"

namespace moiety {

/// Appends a dispatch to a batch of the same layer, hidden size and combine mode. Its rows and
/// pairs keep their order and follow those that are there, so that a reply is a contiguous range.
void append_dispatch(Dispatch& batch, const Dispatch& dispatch);

/// Values in the reply to a dispatch: a row per row, or a row per pair.
std::size_t reply_values(const Dispatch& dispatch);

}  // namespace moiety
