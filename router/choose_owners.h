#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "common/ids.h"

namespace moiety {

/// Whom one row asks for each of its experts, where several workers hold the same one. It goes to
/// few workers: first those that it needs anyway, then whoever holds the most of what is left; of
/// equals a hash of `row_hash` and the worker decides, which spreads the rows.
///
/// The choice depends on the row's own experts and the owners alone, not on other rows: with
/// partial sums per worker, a row's bits would otherwise depend on its batch.
///
///   owners  [slots]  the workers that hold the slot's expert; none empty
///   chosen  [slots]  out
void choose_owners(std::span<const std::vector<WorkerId>* const> owners,
                   std::uint64_t row_hash,
                   std::span<WorkerId> chosen);

/// A `row_hash`.
std::uint64_t hash_experts(std::span<const std::int32_t> experts);

}  // namespace moiety
